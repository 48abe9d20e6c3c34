"""Whole jobs as a user starts them: mpirun, nine ranks at most, the embedded digits."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load
from whole_jobs import (
    ENVIRONMENT,
    SMALL,
    copy_without_last_checkpoint,
    generator,
    lines,
    losses,
    run,
)

from fedgan_mpi.checkpoint.format import read_content, read_manifest

pytestmark = pytest.mark.jobs


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """One short run on three ranks with everything that a run leaves behind."""
    cwd = tmp_path_factory.mktemp("whole")
    done = run(
        3, "--run.name", "a", "--training.rounds", "6", "--checkpoint.every", "2",
        *SMALL[:4], "--evaluation.every", "3", "--link.average", "gather", cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "runs/a"
    assert re.match(r"[\d.]+ s, 6 rounds$", done.stdout.splitlines()[-2])
    assert "frechet_classifier_distance" in done.stdout and "100%" in done.stderr
    return cwd / "runs" / "a"


def test_a_run_directory_holds_what_the_readme_says(whole):
    names = {path.name for path in whole.iterdir()}
    assert names == {
        ".lock", "config.toml", "devices.json", "stats.jsonl", "samples", "checkpoints", "shards",
        "report.html", "curves.png", "losses.png", "training.gif", "generator.safetensors",
        "generator.json", "generator_best.safetensors", "generator_best.json",
    }  # fmt: skip
    grids = sorted(path.name for path in (whole / "samples").iterdir())
    assert grids == [f"round_{n:06d}.png" for n in (0, 3, 6)]
    kept = sorted(path.name for path in (whole / "checkpoints").iterdir())
    assert kept == ["round_000004", "round_000006"]
    config = (whole / "config.toml").read_text()
    for word in ("rounds = 6", "[provenance]", "mpi = ", "host = ", "git = ", "torch = "):
        assert word in config


def test_stats_have_the_designs_keys(whole):
    rounds = [line for line in lines(whole) if "metric" not in line]
    assert [line["round"] for line in rounds] == [1, 2, 3, 4, 5, 6]
    for line in rounds:
        assert {
            "round", "participants", "d_loss", "g_loss", "seconds", "seconds_downlink",
            "seconds_local", "seconds_uplink", "seconds_server", "bytes_down", "bytes_up",
            "images_seen",
        } <= set(line)  # fmt: skip
        assert line["participants"] == list(range(1, 9))
        # While the server computes, devices may begin their next round, which counts there.
        computing = line["seconds_local"], line["seconds_server"]
        assert line["seconds"] / 10 < sum(computing) and 0 < max(computing) <= line["seconds"]
        assert 0 < line["seconds_uplink"] < line["seconds"] > line["seconds_downlink"] > 0
        assert line["images_seen"] == line["round"] * 8 * 32
    scores = [line for line in lines(whole) if "metric" in line]
    assert {line["round"] for line in scores} == {0, 3, 6}
    for score in scores:
        assert set(score) == {"round", "metric", "value", "floor", "samples"}
        assert score["samples"] == 359
    extractor = json.loads((whole / "shards" / "shards.json").read_text())["features"]
    import hashlib

    sha256 = hashlib.sha256((whole / "shards" / extractor).read_bytes()).hexdigest()
    assert scores[0]["metric"] == f"frechet_classifier_distance-{sha256[:8]}"
    assert 1 < scores[0]["floor"] < 10 < 1000 < scores[0]["value"]


def test_the_generator_works_without_mpi(whole):
    code = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "from fedgan_mpi import load_generator\n"
        f"images = load_generator({str(whole)!r})(5)\n"
        "print(images.shape, images.dtype, images.std() > 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "(5, 1, 16, 16) uint8 True", done.stderr


def test_sample_draws_a_grid(whole, tmp_path):
    from PIL import Image

    from fedgan_mpi.__main__ import main

    out = tmp_path / "grid.png"
    assert main(["sample", str(whole), "--count", "10", "--out", str(out)]) == 0
    assert Image.open(out).size == (4 * 66 + 2, 3 * 66 + 2)  # 16 pixels, four times, with gaps


def test_the_report_needs_no_other_file(whole):
    page = (whole / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)
    assert "frechet_classifier_distance" in page and "rounds = 6" in page


def test_the_checkpoint_goes_on_bitwise(whole, tmp_path):
    """Four rounds, then to six on other ranks: numbers and parameters of the run in one go."""
    from_four = tmp_path / "runs" / "a"
    copy_without_last_checkpoint(whole, from_four)
    for name in ("generator.safetensors", "report.html"):
        (from_four / name).unlink()
    done = run(4, "train", "--resume", "runs/a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert losses(from_four) == losses(whole)
    assert generator(from_four) == generator(whole)
    for name in ("round_000003.png", "round_000006.png"):
        assert (from_four / "samples" / name).read_bytes() == (
            whole / "samples" / name
        ).read_bytes()
    of_whole, of_resumed = (
        [line for line in lines(d) if "metric" in line] for d in (whole, from_four)
    )
    assert len(of_whole) == len(of_resumed) == 9
    for one, other in zip(of_whole, of_resumed, strict=True):
        # Sums of features over other ranks round differently.
        assert (one["round"], one["metric"]) == (other["round"], other["metric"])
        assert one["value"] == pytest.approx(other["value"], rel=1e-9)
        assert one["floor"] == pytest.approx(other["floor"], rel=1e-9)
    final = json.loads((from_four / "generator.json").read_text())
    assert final["round"] == 6 and len(final["scores"]) == 3


GATHERED = (
    "--training.rounds", "3", "--checkpoint.every", "0", *SMALL, "--link.average", "gather",
)  # fmt: skip


def test_any_number_of_ranks_gives_the_same_bits(tmp_path):
    """Eight devices on eight ranks, and on one."""
    for ranks, name in ((9, "nine"), (2, "two")):
        done = run(ranks, "--run.name", name, *GATHERED, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    directories = [tmp_path / "runs" / name for name in ("nine", "two")]
    assert len({tuple(losses(d)) for d in directories}) == 1
    assert len({generator(d) for d in directories}) == 1


def test_no_rank_imports_what_it_does_not_need(tmp_path):
    """The digits' extractor, rounds, scores and a report; torch's compiler takes as long to import
    as torch does."""
    program = tmp_path / "telling.py"
    program.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from fedgan_mpi.__main__ import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "Path(f'imported_{os.getpid()}').write_text(' '.join(sys.modules))\n"
    )
    done = run(2, "--training.rounds", "1", *SMALL, cwd=tmp_path, program=(str(program),))
    assert done.returncode == 0, done.stderr
    imported = [set(path.read_text().split()) for path in tmp_path.glob("imported_*")]
    assert len(imported) == 2 and all("torch" in modules for modules in imported)
    for modules in imported:
        assert not {"torch._dynamo", "torch.distributed.fsdp", "matplotlib.pyplot"} & modules


def test_a_device_that_fails_in_a_round_ends_the_job(tmp_path):
    """One traceback, with the rank; not zero; no hang."""
    program = tmp_path / "broken.py"
    program.write_text(
        "import sys\n"
        "from fedgan_mpi.federation import rank\n"
        "honest = rank.Device.train_discriminator\n"
        "def broken(self, t):\n"
        "    if self.index == 2 and t == 1:\n"
        "        raise RuntimeError('a bug on one rank')\n"
        "    return honest(self, t)\n"
        "rank.Device.train_discriminator = broken\n"
        "from fedgan_mpi.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    start = time.monotonic()
    done = run(3, "--training.rounds", "3", *SMALL, cwd=tmp_path, program=(str(program),))
    assert done.returncode != 0
    assert done.stderr.count("Traceback (most recent call last)") == 1
    assert "[rank 2 on" in done.stderr and "a bug on one rank" in done.stderr
    assert time.monotonic() - start < 60


def test_a_loss_that_is_not_a_number_stops_all_ranks(tmp_path):
    done = run(
        3, "--run.name", "a", "--training.rounds", "50", "--training.discriminator_lr", "1e30",
        "--training.optimizer", "sgd", "--checkpoint.every", "1", *SMALL, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert re.search(r"_loss of (the server|device \d) is (nan|inf|-inf) in round", done.stderr)
    assert "start anew with lower learning rates" in done.stderr
    kept = sorted((tmp_path / "runs" / "a" / "checkpoints").iterdir())
    state = load(read_content(read_manifest(kept[-1]), "server.safetensors"))
    assert state["vector"].isfinite().all()
    assert all("NaN" not in line for line in (tmp_path / "runs/a/stats.jsonl").read_text().split())


# ------------------------------------------------------------ mistakes


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Three shards of 16 pixels without labels."""
    from fedgan_mpi.data import Manifest, write_shard

    directory = tmp_path_factory.mktemp("shards") / "shards"
    directory.mkdir()
    stream = np.random.default_rng(0)
    hashes = []
    for device in (1, 2, 3):
        images = stream.integers(0, 256, (6, 1, 16, 16), dtype=np.uint8)
        path = directory / f"device_{device:04d}.h5"
        hashes.append(write_shard(path, images, None, np.arange(6), {"device": device}))
    Manifest(
        format_version=1, dataset="toy", image_shape=(1, 16, 16), class_names=[],
        partition={"name": "iid"}, seed=0, devices=3, images=[6, 6, 6], histograms=[[], [], []],
        pixels_sha256=hashes, sha256="x", heldout=None, heldout_images=0, features=None,
    ).write(directory)  # fmt: skip
    return directory


def truncate(directory: Path) -> None:
    path = directory / "device_0002.h5"
    path.write_bytes(path.read_bytes()[:-200])


def unlink(directory: Path) -> None:
    (directory / "device_0003.h5").unlink()


def change(name: str, act):
    def changed(directory: Path) -> None:
        import h5py

        with h5py.File(directory / name, "r+") as file:
            act(file)

    return changed


def of_dtype(file) -> None:
    del file["images"]
    file["images"] = np.zeros((6, 1, 16, 16), np.float32)


def of_shape(file) -> None:
    del file["images"]
    file["images"] = np.zeros((6, 1, 16, 17), np.uint8)


def lost_extractor(directory: Path) -> None:
    manifest = json.loads((directory / "shards.json").read_text())
    manifest |= {"features": "features.safetensors", "features_sha256": "0" * 64}
    (directory / "shards.json").write_text(json.dumps(manifest))


def extractor(directory: Path) -> None:
    lost_extractor(directory)
    (directory / "features.safetensors").write_bytes(b"another")


def swap(directory: Path) -> None:
    shutil.copy(directory / "device_0001.h5", directory / "device_0002.h5")


def existing(cwd: Path) -> None:
    (cwd / "runs" / "a").mkdir(parents=True)


def in_the_way(cwd: Path) -> None:
    (cwd / "runs").write_text("a file")


# ranks, arguments, what to do to the shards or to the working directory, the sentence
MISTAKES = {
    "unknown flag": (2, ["--training.rouns", "3"], None, "unknown flag --training.rouns"),
    "wrong type": (2, ["--training.rounds", "x"], None, "training.rounds is x"),
    "no rounds": (2, ["--training.rounds", "0"], None, "training.rounds is 0"),
    "one rank": (1, [], None, "this world has 1 rank"),
    "too many ranks": (5, ["SHARDS"], None, "there are 4 device ranks for 3 devices"),
    "too many participants": (
        2,
        ["SHARDS", "--participation.policy", "random", "--participation.count", "4"],
        None,
        "participation.count is 4, but must be at most 3",
    ),
    "no shards": (2, ["--data.shards", "nowhere"], None, "nowhere/shards.json cannot be read"),
    "missing shard": (4, ["SHARDS"], unlink, "device_0003.h5 is missing"),
    "truncated shard": (4, ["SHARDS"], truncate, "device_0002.h5 is truncated"),
    "dtype of a shard": (4, ["SHARDS"], change("device_0002.h5", of_dtype), "float32, but must be"),
    "shape of a shard": (4, ["SHARDS"], change("device_0003.h5", of_shape), "must be N×1×16×16"),
    "version of a shard": (
        4,
        ["SHARDS"],
        change("device_0001.h5", lambda f: f.attrs.__setitem__("format_version", 7)),
        "device_0001.h5 has format_version 7",
    ),
    "another's shard": (4, ["SHARDS"], swap, "device_0002.h5 is not the shard of device 2"),
    "another size": (2, ["SHARDS", "--model.size", "32"], None, "model.size is 32, but the images"),
    "no held-out file": (2, ["SHARDS", "--data.heldout", "no.h5"], None, "no.h5 is missing"),
    "existing run": (2, ["--run.name", "a"], existing, "runs/a exists already"),
    "unwritable run": (2, ["--run.name", "a"], in_the_way, "run directory runs/a cannot be made"),
    "too many samples": (
        2,
        ["--evaluation.samples", "1000"],
        None,
        "evaluation.samples is 1000, but the digits' held-out part holds 359",
    ),
    "no Inception file": (
        2,
        ["--evaluation.inception_weights", "no.pth"],
        None,
        "evaluation.inception_weights: no.pth cannot be read",
    ),
    "no held-out digits": (2, ["--data.heldout", "no.h5"], None, "no.h5 is missing"),
    "changed extractor": (
        2,
        ["SHARDS"],
        extractor,
        "features.safetensors is not the extractor that shards.json describes",
    ),
    "no extractor": (2, ["SHARDS"], lost_extractor, "features.safetensors cannot be read"),
    "cuda route": (2, ["--link.route", "cuda"], None, "link.route is 'cuda'"),
    "cuda device": (2, ["--training.device", "cuda"], None, "training.device is 'cuda'"),
    "cuda graphs": (2, ["--training.graphs", "on"], None, "training.graphs is 'on', but there is"),
}


@pytest.mark.parametrize(("ranks", "arguments", "act", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_from_one_rank(ranks, arguments, act, sentence, shards, tmp_path):
    from fedgan_mpi.hardware.gpu import cuda_devices

    if "cuda" in sentence and cuda_devices():
        pytest.skip("there is a GPU")
    if "SHARDS" in arguments:
        shutil.copytree(shards, tmp_path / "shards")
        arguments = ["--data.shards", "shards", *arguments[1:]]
        if act is not None:
            act(tmp_path / "shards")
    elif act is not None:
        act(tmp_path)
    before = {path for path in tmp_path.rglob("*")}
    start = time.monotonic()
    done = run(ranks, *arguments, cwd=tmp_path, forked=False)
    assert time.monotonic() - start < 60
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if sentence in line]
    assert len(told) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert {path for path in tmp_path.rglob("*")} == before  # nothing was written
    assert not done.stdout.strip()


def test_a_world_of_one_that_should_be_more_is_refused(tmp_path):
    """As when srun lacks the right --mpi: every rank would train alone and succeed."""
    told = []
    for rank in range(4):
        environment = {**ENVIRONMENT, "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": str(rank)}
        done = subprocess.run(
            [sys.executable, "-m", "fedgan_mpi"],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode != 0
        told.append(done.stderr.strip())
    assert "the launcher started 4 ranks, but MPI sees a world of 1" in told[0]
    assert told[1:] == ["", "", ""]


def test_dry_run_prints_and_writes_nothing(shards, tmp_path):
    done = run(
        1, "--dry-run", "--data.shards", str(shards), "--participation.policy", "random",
        "--participation.count", "2", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    from fedgan_mpi.config import ModelConfig
    from fedgan_mpi.nn.registry import build, count_parameters

    theta, phi = (count_parameters(n) for n in build(ModelConfig(), (1, 16, 16)))
    for text in (
        f"parameters of G       {theta:,}",
        f"parameters of D       {phi:,}",
        f"bytes down a round    {2 * 4 * (theta + phi):,}",
        f"bytes up a round      {2 * 4 * phi:,}",
        "images a device       6, 6, 6",
        "participants a round  2 of 3",
        'policy = "random"',
    ):
        assert text in done.stdout, done.stdout
    assert list(tmp_path.iterdir()) == []


def test_help_is_printed_once(tmp_path):
    done = run(3, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count("--training.rounds") == 2  # the flag, and the example
