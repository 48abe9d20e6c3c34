"""The table of checkpoint files that ranks sum before one is sealed."""

from __future__ import annotations

import hashlib

from fedgan_mpi.checkpoint.writer import decode_files, encode_files


def test_the_sum_over_ranks_has_the_files_of_all_ranks():
    """A file that no rank has written, as after a death, is absent from the sum."""
    names = ["server.safetensors", "device_0001.safetensors", "device_0002.safetensors"]
    files = [
        {name: {"bytes": 2**40 + n, "sha256": hashlib.sha256(bytes([n])).hexdigest()}}
        for n, name in enumerate(names[:2])
    ]
    total = sum(encode_files(entries, names) for entries in files)
    assert decode_files(total, names) == {**files[0], **files[1]}
