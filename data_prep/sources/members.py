"""Names of members of archives."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from fedgan_mpi.errors import UserError


def safe_name(archive: Path, member: str) -> str:
    """Return a member's path with forward slashes.

    Raises UserError if it leaves the archive's folder, although nothing is unpacked.
    """
    name = member.replace("\\", "/")  # some programs for Windows write them
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or ":" in name.split("/")[0]:
        raise UserError(
            f"{archive} has the member {member!r}, whose path leaves the archive's folder; "
            "do not trust this archive"
        )
    return "/".join(parts)
