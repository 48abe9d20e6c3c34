"""From files to shards: equal to the source bit for bit, in whichever way they were decoded, and
whole or absent however the run ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import originals
import pytest
from test_data_prep_sources import DATA

from data_prep.__main__ import main
from data_prep.decode import Decoder, decode_here, decode_in_processes
from data_prep.directory import filling
from data_prep.partition import Dirichlet
from data_prep.prepare import prepare
from data_prep.sources import SOURCES
from fedgan_mpi.data import Manifest, read_shard
from fedgan_mpi.errors import UserError

ROOT = Path(__file__).parents[2]
PLAIN = ["--features", "none", "--processes", "1"]


def contents(directory: Path) -> dict[str, np.ndarray]:
    """Every data set of every file, by "file/name"."""
    found = {}
    for path in sorted(directory.glob("*.h5")):
        with h5py.File(path) as file:
            found |= {f"{path.name}/{name}": file[name][...] for name in file}
    return found


def same(one: Path, other: Path) -> bool:
    a, b = contents(one), contents(other)
    manifests = [json.loads((path / "shards.json").read_text()) for path in (one, other)]
    return (
        a.keys() == b.keys()
        and all(np.array_equal(a[name], b[name]) for name in a)
        and manifests[0] == manifests[1]
    )


def check_against(directory: Path, images: np.ndarray, labels: np.ndarray) -> Manifest:
    """Images are the source's bit for bit; each is held once."""
    manifest = Manifest.read(directory)
    held = []
    for name in [f"device_{k:04d}.h5" for k in range(1, manifest.devices + 1)] + ["heldout.h5"]:
        shard = read_shard(directory / name, image_shape=manifest.image_shape)
        assert np.array_equal(shard.images, images[shard.indices])
        assert np.array_equal(shard.labels, labels[shard.indices])
        held += shard.indices.tolist()
    assert sorted(held) == list(range(len(images)))
    return manifest


def test_shards_equal_the_source_bit_for_bit(tmp_path):
    images = originals.mnist(tmp_path / "raw")
    out = tmp_path / "out"
    arguments = ["--partition", "classes", "--devices", "5", "--out", str(out), *PLAIN]
    assert main(["mnist", "--source", str(tmp_path), *arguments]) == 0
    manifest = check_against(out, images[:, None], np.arange(160) % 10)
    assert manifest.partition == {"name": "classes", "classes": 2}
    assert [np.count_nonzero(row) for row in manifest.histograms] == [2] * 5
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*(f"device_{k:04d}.h5" for k in range(1, 6)), "heldout.h5", "shards.json"]
    )
    with h5py.File(out / "device_0001.h5") as file:
        assert file["images"].chunks is None
        assert file.attrs["device"] == 1 and file.attrs["devices"] == 5
        assert json.loads(file.attrs["image_shape"]) == [1, 28, 28]


@pytest.mark.skipif(not (DATA / "MNIST").exists(), reason="the real MNIST is not here")
def test_the_real_mnist_in_8_dirichlet_shards(tmp_path):
    source = SOURCES["mnist"](DATA)
    prepare(source, tmp_path / "out", devices=8, partition=Dirichlet(), features="none")
    check_against(tmp_path / "out", source.images, source.labels)


@pytest.mark.skipif(not (DATA / "pneumoniamnist.npz").exists(), reason="PneumoniaMNIST not here")
def test_the_real_pneumoniamnist_in_8_dirichlet_shards(tmp_path):
    with np.load(DATA / "pneumoniamnist.npz") as arrays:
        images = np.concatenate([arrays[f"{part}_images"] for part in ("train", "val", "test")])
        labels = np.concatenate([arrays[f"{part}_labels"] for part in ("train", "val", "test")])
    source = SOURCES["npz"](DATA / "pneumoniamnist.npz")
    prepare(source, tmp_path / "out", devices=8, partition=Dirichlet(), features="none")
    check_against(tmp_path / "out", images[:, None], labels[:, 0])


@pytest.fixture
def faces(tmp_path) -> Path:
    originals.celeba(tmp_path / "celeba")
    return tmp_path / "celeba"


def options(source: Path, out: Path, *more: str) -> list[str]:
    files = ["--source", str(source), "--out", str(out), "--size", "16", "--devices", "3"]
    return ["celeba", *files, "--partition", "attribute", "--attributes", "Male,Smiling", *more]


def test_decoding_in_processes_gives_the_same_shards(tmp_path, faces):
    for processes in ("1", "3"):
        more = ("--features", "none", "--processes", processes)
        assert main(options(faces, tmp_path / processes, *more)) == 0
    assert same(tmp_path / "1", tmp_path / "3")
    manifest = Manifest.read(tmp_path / "1")
    assert manifest.image_shape == (3, 16, 16) and manifest.heldout_images == 20
    assert sum(manifest.images) == 40 and not manifest.class_names


@pytest.mark.jobs
def test_decoding_in_ranks_gives_the_same_shards(tmp_path, faces):
    main(options(faces, tmp_path / "1", *PLAIN))
    job = mpirun(3, options(faces, tmp_path / "ranks", "--features", "none"))
    assert job.returncode == 0, job.stderr
    assert same(tmp_path / "1", tmp_path / "ranks")


@pytest.mark.jobs
def test_every_rank_leaves_where_the_input_is_wrong(tmp_path, faces):
    (faces / "img_align_celeba" / "000033.jpg").write_bytes(b"")
    job = mpirun(3, options(faces, tmp_path / "out"))
    assert job.returncode != 0 and not (tmp_path / "out").exists()
    assert "000033.jpg" in job.stderr and "Traceback" not in job.stderr
    job = mpirun(2, ["celeba", "--out", str(tmp_path / "out")])
    assert job.returncode != 0 and "needs --source" in job.stderr


def test_ranks_that_do_not_find_each_other_are_refused(tmp_path):
    """As under the mpirun of another MPI: each would write the same shards."""
    job = subprocess.run(
        [sys.executable, "-m", "data_prep", "digits", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "OMPI_COMM_WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert job.returncode == 1 and "MPI sees a world of 1" in job.stderr
    assert not (tmp_path / "out").exists()


def mpirun(ranks: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    mpiexec = Path(sys.executable).parent / "mpirun"
    launcher = str(mpiexec) if mpiexec.exists() else "mpirun"
    return subprocess.run(
        [launcher, "-n", str(ranks), sys.executable, "-m", "data_prep", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("name", ["rsna", "imagefolder", "cifar10", "digits"])
def test_every_kind_of_source_becomes_shards(tmp_path, name):
    source = tmp_path / "in"
    if name == "rsna":
        originals.rsna(source)
    elif name == "imagefolder":
        originals.picture_folder(source)
    elif name == "cifar10":
        originals.unpack(source, originals.cifar10_files()[0])
    arguments = ["--size", "32", "--devices", "2", "--out", str(tmp_path / "out"), *PLAIN]
    assert main([name, "--source", str(source), *arguments]) == 0
    manifest = Manifest.read(tmp_path / "out")
    assert manifest.image_shape == (1 if name in ("rsna", "digits") else 3, 32, 32)
    main([name, "--source", str(source), "--channels", "1", *arguments[:4], "--out",
          str(tmp_path / "gray"), *PLAIN])  # fmt: skip
    assert Manifest.read(tmp_path / "gray").image_shape == (1, 32, 32)


@pytest.mark.parametrize("features", ["none", "pca"])
def test_nothing_is_imported_from_torchvision_or_torch_to_cut(tmp_path, features):
    """Without a classifier to train, a run starts in a moment and stays small."""
    code = (
        "import sys; from data_prep.__main__ import main; "
        f"main(['digits', '--out', {str(tmp_path / 'out')!r}, '--features', {features!r}]); "
        "assert not {'torch', 'torchvision', 'mpi4py', 'pydicom'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


# Runs that do not end well


def test_a_killed_run_goes_on_where_it_stopped(tmp_path, faces):
    """Shards that were whole are not written again, and the end is as if nothing had happened."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    main(options(faces, whole, *PLAIN))
    killed = kill_after_first_shard(options(faces, out, *PLAIN), out)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "shards.json").exists() and (out / "device_0001.h5").exists()
    with pytest.raises(UserError, match=r"shards\.json cannot be read"):
        Manifest.read(out)
    first = (out / "device_0001.h5").stat().st_mtime_ns
    assert main(options(faces, out, *PLAIN)) == 0
    assert same(whole, out)
    assert (out / "device_0001.h5").stat().st_mtime_ns == first
    assert sorted(path.name for path in out.iterdir()) == sorted(p.name for p in whole.iterdir())


def kill_after_first_shard(arguments: list[str], out: Path) -> subprocess.CompletedProcess:
    """SIGKILL itself in the middle of the second shard."""
    code = (
        "import os, signal, sys\n"
        "from data_prep.sources.celeba import CelebA\n"
        "from data_prep.__main__ import main\n"
        "decode = CelebA.image\n"
        "def image(self, index):\n"
        f"    if os.path.exists({str(out / 'device_0001.h5')!r}):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return decode(self, index)\n"
        "CelebA.image = image\n"
        "main(sys.argv[1:])\n"
    )
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, timeout=60)


def test_an_interrupted_run_is_not_mixed_with_another(tmp_path, faces, capsys):
    out = tmp_path / "out"
    kill_after_first_shard(options(faces, out, *PLAIN), out)
    assert main([*options(faces, out, *PLAIN), "--seed", "1"]) == 1
    assert "holds an interrupted run with another seed" in capsys.readouterr().err
    assert (out / "device_0001.h5").exists()


def test_no_process_outlives_a_killed_run(tmp_path):
    code = (
        "import os, signal, sys, time, numpy as np\n"
        "from data_prep.decode import Decoder, decode_in_processes\n"
        "from data_prep.sources import digits\n"
        "decoder = Decoder(source=digits(), size=16, image_shape=(1, 16, 16))\n"
        "stream = decode_in_processes(2)(decoder, [np.arange(9)] * 9)\n"
        "next(stream)\n"
        "import multiprocessing\n"
        "print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    job = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60
    )
    children = [int(pid) for pid in job.stdout.split()]
    assert len(children) == 2
    deadline = time.monotonic() + 10
    while any(is_running(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(child) for child in children)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_killed_decoding_process_is_an_error(monkeypatch):
    decoder = Decoder(source=SOURCES["digits"](None), size=16, image_shape=(1, 16, 16))
    monkeypatch.setattr(
        SOURCES["digits"], "image", lambda self, index: os.kill(os.getpid(), signal.SIGKILL)
    )
    with pytest.raises(UserError, match="a decoding process was killed"):
        list(decode_in_processes(2)(decoder, [np.arange(3)]))


def test_blocks_are_small_and_few_are_under_way():
    decoder = Decoder(source=SOURCES["digits"](None), size=64, image_shape=(3, 64, 64))
    blocks = decoder.blocks(np.arange(1000))
    assert [n for block in blocks for n in block] == list(range(1000))
    assert max(map(len, blocks)) * 3 * 64 * 64 <= 2**20
    taken = []

    def asked():
        for block in blocks:
            taken.append(1)
            yield block

    stream = decode_in_processes(2)(decoder, asked())
    next(stream)
    assert len(taken) <= 5
    assert next(iter(decode_here(decoder, blocks[:1]))).images.shape == (len(blocks[0]), 3, 64, 64)
    stream.close()


def test_unreadable_images_are_left_out_where_allowed(tmp_path, faces, capsys):
    images = faces / "img_align_celeba"
    (images / "000003.jpg").write_bytes(b"not a jpeg")
    (images / "000006.jpg").write_bytes((images / "000006.jpg").read_bytes()[:900])
    out = tmp_path / "out"
    assert main(options(faces, out, *PLAIN, "--skip-bad", "1")) == 1
    assert "--skip-bad N" in capsys.readouterr().err and not out.exists()
    assert main(options(faces, out, *PLAIN, "--skip-bad", "2")) == 0
    manifest = Manifest.read(out)
    assert [line.split(":")[0] for line in sorted(manifest.skipped)] == ["000003.jpg", "000006.jpg"]
    assert sum(manifest.images) == 39 and manifest.heldout_images == 19
    source = SOURCES["celeba"](faces)
    decoder = Decoder(source=source, size=16, image_shape=(3, 16, 16))
    for name in ("device_0001.h5", "device_0002.h5", "device_0003.h5", "heldout.h5"):
        shard = read_shard(out / name, image_shape=(3, 16, 16))
        assert len(shard) == len(shard.indices) and not {2, 5} & set(shard.indices.tolist())
        assert np.array_equal(shard.images, decoder(shard.indices).images)
        with h5py.File(out / name) as file:
            assert file["images"].chunks is None
    assert main(["inspect", str(out)]) == 0


def test_a_full_disk_leaves_nothing(tmp_path, faces, capsys, monkeypatch):
    out = tmp_path / "out"
    usage = type("usage", (), {"free": 1000})
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.directory.shutil.disk_usage", lambda path: usage)
        assert main(options(faces, out, *PLAIN)) == 1
    assert "bytes more, but 1,000 are free there" in capsys.readouterr().err
    assert not out.exists()
    # The disk fills while a shard is written: stood in for by a limit on the size of files.
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
        "from data_prep.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    job = subprocess.run(
        [sys.executable, "-c", limited, *options(faces, out, *PLAIN)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert job.returncode == 1 and f"{out} cannot be written" in job.stderr
    assert "Traceback" not in job.stderr and not out.exists()


def test_no_space_left_is_said_so(tmp_path):
    with (
        pytest.raises(UserError, match="out cannot be written: No space left"),
        filling(tmp_path / "out", {"devices": 1}, 0),
    ):
        raise OSError("Can't write data (errno = 28, error message = 'No space left on device')")
    assert not (tmp_path / "out").exists()
