"""Reads files from a tar archive without unpacking it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from data_prep.sources.base import name_file_in_errors
from data_prep.sources.bounded import MAX_BYTES, open_tar
from data_prep.sources.leftovers import find_leftover
from data_prep.sources.members import safe_name
from fedgan_mpi.files import read_regular_file

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!": "RAR",
}
"""First bytes -> program. Such an archive cannot be read in any order."""
START_BYTES = 512


def is_tar(start: bytes) -> bool:
    """Return whether a file begins as a tar archive does. start: START_BYTES."""
    return start[257:262] == b"ustar"


def find_compression(start: bytes) -> str | None:
    """Return the program that has compressed a file as a whole, or None."""
    return next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)


class Tar:
    """The regular members of a tar archive that is not compressed."""

    def __init__(self, path: Path) -> None:
        """Read the headers. Refuses an archive with paths outside its folder."""
        self.path = path
        self.left_out: Counter[str] = Counter()
        self._members: dict[str, tuple[int, int]] = {}
        with (
            name_file_in_errors(path, "a tar archive"),
            open_tar(path, most_member=MAX_BYTES, most=2**62) as tar,
        ):
            for member in tar:
                if member.isdir():
                    continue
                name = safe_name(path, member.name)
                if not member.isfile() or member.issparse():
                    self.left_out[f"{name}, a link or special file"] += 1
                elif (leftover := find_leftover(name)) is not None:
                    self.left_out[leftover] += 1
                else:
                    self._members[name] = member.offset_data, member.size

    def names(self) -> list[str]:
        return sorted(self._members)

    def read_start(self, name: str, nbytes: int) -> bytes:
        start, size = self._members[name]
        return read_regular_file(self.path, start=start, nbytes=min(nbytes, size))

    def read(self, name: str) -> bytes:
        start, size = self._members[name]
        if size > MAX_BYTES:
            raise ValueError(f"it has {size:,} bytes, more than {MAX_BYTES:,}")
        content = read_regular_file(self.path, start=start, nbytes=size)
        if len(content) != size:
            raise ValueError("the archive is truncated")
        return content
