"""Writing to paths that are links, FIFOs, devices, sockets or directories, and full disks.

A file is complete or absent. Nothing but a regular file is ever replaced.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedgan_mpi.data import write_shard
from fedgan_mpi.errors import UserError
from fedgan_mpi.files import complete_or_absent, explain_write_errors, write_complete
from fedgan_mpi.report.web.page import write_page
from fedgan_mpi.run.figures import write_figure
from fedgan_mpi.run.image_grids import write_animation, write_grid

IMAGES = np.arange(4 * 64, dtype=np.uint8).reshape(4, 1, 8, 8)
NULL = os.makedev(1, 3)
FULL = os.makedev(1, 7)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may create device nodes")


def save_figure(path: Path) -> None:
    from matplotlib.figure import Figure

    write_figure(Figure(), path)


def animate(path: Path) -> None:
    frame = path.parent / "frame.png"
    Image.new("L", (8, 8)).save(frame)
    write_animation(path, [frame])


WRITERS = {
    "bytes": lambda path: write_complete(path, b"new"),
    "grid": lambda path: write_grid(path, IMAGES),
    "animation": animate,
    "figure": save_figure,
    "page": lambda path: write_page(path, "title", {}),
    "shard": lambda path: write_shard(path, IMAGES, None, np.arange(4), {}),
}
each_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def make_node(path: Path, kind: str) -> None:
    if kind == "directory":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(path.name)  # a full path may be too long
    elif kind == "device":
        os.mknod(path, 0o666 | stat.S_IFCHR, NULL)
    else:
        os.mknod(path, 0o666 | stat.S_IFBLK, os.makedev(240, 0))


KINDS = [
    "directory", "FIFO", "socket",
    *(pytest.param(kind, marks=needs_root) for kind in ("device", "block device")),
]  # fmt: skip


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def hidden_files(directory: Path) -> list[str]:
    return [path.name for path in directory.rglob(".*")]


# ------------------------------------------------------------ links


@each_writer
def test_a_link_remains_and_its_target_is_replaced(directory, write):
    target, link = directory / "far" / "target", directory / "link"
    target.parent.mkdir()
    target.write_bytes(b"old")
    link.symlink_to("far/target")
    write(link)
    assert link.is_symlink() and os.readlink(link) == "far/target"
    assert target.read_bytes() not in (b"old", b"") and not target.is_symlink()
    assert not hidden_files(directory)


@each_writer
def test_a_link_to_nothing_remains_and_its_target_is_created(directory, write):
    first, second, target = (directory / name for name in ("first", "second", "target"))
    first.symlink_to(second)
    second.symlink_to("target")
    write(first)
    assert first.is_symlink() and second.is_symlink()
    assert target.stat().st_size and not target.is_symlink()


def test_an_error_in_the_block_leaves_the_target_of_a_link(directory):
    (directory / "target").write_bytes(b"old")
    (directory / "link").symlink_to("target")
    with pytest.raises(ZeroDivisionError), complete_or_absent(directory / "link") as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert (directory / "link").read_bytes() == b"old" and not hidden_files(directory)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("link", "Too many levels of symbolic links"),
        ("absent/file", "No such file or directory"),
        (".", "it is a directory, but must be a regular file"),
    ],
)
def test_a_link_that_leads_nowhere_is_refused(directory, target, reason, stream):
    link = directory / "link"
    link.symlink_to(target)
    with pytest.raises(UserError) as refused, explain_write_errors(link):
        write_grid(link, IMAGES, stream=stream)
    assert str(refused.value) == f"{link} cannot be written: {reason}"
    assert os.readlink(link) == target and list(directory.iterdir()) == [link]


# ------------------------------------------------------------ FIFOs, devices, sockets, directories


@pytest.mark.parametrize("linked", [False, True], ids=["direct", "linked"])
@pytest.mark.parametrize("kind", KINDS)
@each_writer
def test_nothing_but_a_regular_file_is_replaced(directory, write, kind, linked):
    node = directory / "node"
    make_node(node, kind)
    before = node.lstat()
    path = directory / "link" if linked else node
    if linked:
        path.symlink_to(node)
    with pytest.raises(UserError) as refused, explain_write_errors(path):
        write(path)
    reason = f"it is a {kind}, but must be a regular file"
    assert str(refused.value) == f"{path} cannot be written: {reason}"
    after = node.lstat()
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)
    assert not hidden_files(directory)


@pytest.mark.parametrize(
    "kind",
    ["directory", "socket", pytest.param("block device", marks=needs_root)],
)
def test_a_stream_needs_a_fifo_or_a_device(directory, kind):
    node = directory / "node"
    make_node(node, kind)
    with pytest.raises(OSError, match=f"it is a {kind}, but must be a regular file"):
        write_grid(node, IMAGES, stream=True)


@pytest.mark.parametrize("linked", [False, True], ids=["direct", "linked"])
def test_a_stream_goes_through_a_fifo(directory, linked):
    fifo = directory / "fifo"
    os.mkfifo(fifo)
    path = directory / "link" if linked else fifo
    if linked:
        path.symlink_to(fifo)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(fifo.read_bytes()))
    reader.start()
    large = np.random.default_rng(0).integers(0, 256, (400, 1, 64, 64), np.uint8)  # fills the pipe
    write_grid(path, large, stream=True)
    reader.join(10)
    write_grid(directory / "file.png", large)
    assert received == [(directory / "file.png").read_bytes()] and len(received[0]) > 2**16
    assert fifo.is_fifo() and path.is_symlink() == linked


def test_a_fifo_without_a_reader_ends_in_a_sentence(directory, monkeypatch):
    monkeypatch.setattr("fedgan_mpi.files.SECONDS_FOR_READER", 0.2)
    os.mkfifo("fifo")
    with pytest.raises(UserError) as refused, explain_write_errors(Path("fifo")):
        write_grid(Path("fifo"), IMAGES, stream=True)
    assert str(refused.value) == "fifo cannot be written: no program reads from it"


@needs_root
def test_a_stream_goes_through_a_device(directory):
    null, full = directory / "null", directory / "full"
    os.mknod(null, 0o666 | stat.S_IFCHR, NULL)
    os.mknod(full, 0o666 | stat.S_IFCHR, FULL)
    write_grid(null, IMAGES, stream=True)
    with pytest.raises(UserError) as refused, explain_write_errors(full):
        write_grid(full, IMAGES, stream=True)
    assert str(refused.value) == f"{full} cannot be written: No space left on device"
    assert [os.stat(path).st_rdev for path in (null, full)] == [NULL, FULL]


PROGRAM = """
import sys
from pathlib import Path
from fedgan_mpi.files import complete_or_absent
with complete_or_absent(Path(sys.argv[1]), stream=True) as temporary:
    temporary.write_bytes(b"new")
"""


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "log"])
@pytest.mark.parametrize("output", ["pipe", "file"])
def test_a_stream_goes_to_standard_output(directory, path, output):
    """If the shell has opened a file, the new content follows the old."""
    command = [sys.executable, "-c", PROGRAM, path]
    with open("log", "ab", buffering=0) as log:
        log.write(b"old ")
        file = log if output == "file" else subprocess.PIPE
        done = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 0, done.stderr
    if output == "file":
        assert Path("log").read_bytes() == b"old new"
    elif path != "log":
        assert done.stdout == b"new"


# ------------------------------------------------------------ names and disks


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127])
def test_the_longest_name_of_a_file_can_be_written(directory, name):
    write_complete(directory / name, b"new")
    assert (directory / name).read_bytes() == b"new" and len(os.listdir(directory)) == 1


@needs_root
@pytest.mark.skipif(not shutil.which("mount"), reason="needs mount")
@each_writer
def test_a_full_disk_leaves_the_old_file(directory, write):
    disk = directory / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this container may not mount")
    try:
        (disk / "file").write_bytes(b"old")
        with open(disk / "rest", "wb", buffering=0) as rest, suppress(OSError):
            while rest.write(bytes(4096)):
                pass
        with pytest.raises(UserError) as refused, explain_write_errors(disk / "file"):
            write(disk / "file")
        assert str(refused.value) == f"{disk / 'file'} cannot be written: No space left on device"
        assert (disk / "file").read_bytes() == b"old"
        assert not hidden_files(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
