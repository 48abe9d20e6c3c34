"""A small file that unpacks to gigabytes, or declares them, is refused before it takes memory."""

from __future__ import annotations

import gzip
import io
import tarfile
import tracemalloc

from data_prep_helpers import error_of


def test_a_member_that_unpacks_to_more_than_a_batch_is_refused(tmp_path, capsys):
    path = tmp_path / "in" / "cifar-10-python.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        member.size = 2**28 + 1

        class Zeros(io.RawIOBase):
            def read(self, size=-1):
                return bytes(size)

        tar.addfile(member, Zeros())
    assert path.stat().st_size < 2e6
    tracemalloc.start()
    try:
        assert "data_batch_1 has 268,435,457 bytes" in error_of(capsys, "cifar10", path.parent)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_a_header_that_announces_a_large_extension_is_refused(tmp_path, capsys):
    """tarfile reads an extended header at once, whatever its size."""
    path = tmp_path / "in" / "cifar-10-python.tar.gz"
    path.parent.mkdir()
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 2**33
    path.write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(2**20)))
    error = error_of(capsys, "cifar10", path.parent)
    assert "cifar-10-python.tar.gz" in error and "more than" in error
