"""Whole jobs as a user starts them: the files of a run, its statistics, resume and any world size.

Jobs have nine ranks at most and train on the embedded digits.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedgan_mpi.testing.jobs import SMALL, SMALL_NETWORKS, run_job
from fedgan_mpi.testing.runs import (
    copy_without_last_checkpoint,
    generator_bytes,
    losses,
    stats_lines,
)

pytestmark = pytest.mark.jobs


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory) -> Path:
    """A short run on three ranks that writes every kind of file."""
    cwd = tmp_path_factory.mktemp("finished")
    done = run_job(
        3, "--run.name", "a", "--training.rounds", "6", "--checkpoint.every", "2",
        *SMALL_NETWORKS, "--evaluation.every", "3", "--link.average", "gather", cwd=cwd,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "runs/a"
    assert re.match(r"[\d.]+ s, 6 rounds$", done.stdout.splitlines()[-2])
    assert "frechet_classifier_distance" in done.stdout and "100%" in done.stderr
    return cwd / "runs" / "a"


def test_a_run_directory_has_the_documented_files(finished_run):
    names = {path.name for path in finished_run.iterdir()}
    assert names == {
        ".lock", "config.toml", "devices.json", "stats.jsonl", "samples", "checkpoints", "shards",
        "report.html", "curves.png", "losses.png", "training.gif", "generator.safetensors",
        "generator.json", "generator_best.safetensors", "generator_best.json",
    }  # fmt: skip
    grids = sorted(path.name for path in (finished_run / "samples").iterdir())
    assert grids == [f"round_{n:06d}.png" for n in (0, 3, 6)]
    kept = sorted(path.name for path in (finished_run / "checkpoints").iterdir())
    assert kept == ["round_000004", "round_000006"]
    config = (finished_run / "config.toml").read_text()
    for word in ("rounds = 6", "[provenance]", "mpi = ", "host = ", "git = ", "torch = "):
        assert word in config


def test_stats_jsonl_has_the_documented_keys(finished_run):
    rounds = [line for line in stats_lines(finished_run) if "metric" not in line]
    assert [line["round"] for line in rounds] == [1, 2, 3, 4, 5, 6]
    for line in rounds:
        assert {
            "round", "participants", "d_loss", "g_loss", "seconds", "seconds_downlink",
            "seconds_local", "seconds_uplink", "seconds_server", "bytes_down", "bytes_up",
            "images_seen",
        } <= set(line)  # fmt: skip
        assert line["participants"] == list(range(1, 9))
        # Devices may begin a round while the server computes; those seconds count in that round.
        computing = line["seconds_local"], line["seconds_server"]
        assert line["seconds"] / 10 < sum(computing) and 0 < max(computing) <= line["seconds"]
        each = line["seconds_of_device"]
        assert len(each) == 8 and 0 < min(each) <= max(each) < line["seconds_local"] + 0.01
        assert 0 < line["seconds_uplink"] < line["seconds"] > line["seconds_downlink"] > 0
        assert line["images_seen"] == line["round"] * 8 * 32
    scores = [line for line in stats_lines(finished_run) if "metric" in line]
    assert {line["round"] for line in scores} == {0, 3, 6}
    for score in scores:
        assert set(score) == {"round", "metric", "value", "floor", "samples"}
        assert score["samples"] == 359
    extractor = json.loads((finished_run / "shards" / "shards.json").read_text())["features"]
    sha256 = hashlib.sha256((finished_run / "shards" / extractor).read_bytes()).hexdigest()
    assert scores[0]["metric"] == f"frechet_classifier_distance-{sha256[:8]}"
    assert 1 < scores[0]["floor"] < 10 < 1000 < scores[0]["value"]


def test_the_generator_loads_without_mpi(finished_run):
    code = (
        "import sys; sys.modules['mpi4py'] = None\n"
        "from fedgan_mpi import load_generator\n"
        f"images = load_generator({str(finished_run)!r})(5)\n"
        "print(images.shape, images.dtype, images.std() > 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "(5, 1, 16, 16) uint8 True", done.stderr


def test_sample_draws_a_grid(finished_run, tmp_path):
    from PIL import Image

    from fedgan_mpi.__main__ import main

    out = tmp_path / "grid.png"
    assert main(["sample", str(finished_run), "--count", "10", "--out", str(out)]) == 0
    # Images of 16 pixels, enlarged four times, with margins of 2 pixels.
    assert Image.open(out).size == (4 * 66 + 2, 3 * 66 + 2)


def test_the_report_refers_to_no_other_file(finished_run):
    text = (finished_run / "report.html").read_text()
    page = re.sub("(?s)<script>.*?</script>", "", text)
    assert page.count("data:image/png;base64,") == 7  # four charts and three grids
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)
    assert "frechet_classifier_distance" in page and "rounds = 6" in page


def test_a_resumed_run_equals_an_uninterrupted_one(finished_run, tmp_path):
    """Resume after round 4 with another number of ranks: same losses, grids and parameters."""
    resumed = tmp_path / "runs" / "a"
    copy_without_last_checkpoint(finished_run, resumed)
    for name in ("generator.safetensors", "report.html"):
        (resumed / name).unlink()
    done = run_job(4, "train", "--resume", "runs/a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert losses(resumed) == losses(finished_run)
    assert generator_bytes(resumed) == generator_bytes(finished_run)
    for name in ("round_000003.png", "round_000006.png"):
        expected = (finished_run / "samples" / name).read_bytes()
        assert (resumed / "samples" / name).read_bytes() == expected
    expected_scores, scores = (
        [line for line in stats_lines(run) if "metric" in line] for run in (finished_run, resumed)
    )
    assert len(expected_scores) == len(scores) == 9
    for one, other in zip(expected_scores, scores, strict=True):
        # Sums of features over another number of ranks round differently.
        assert (one["round"], one["metric"]) == (other["round"], other["metric"])
        assert one["value"] == pytest.approx(other["value"], rel=1e-9)
        assert one["floor"] == pytest.approx(other["floor"], rel=1e-9)
    final = json.loads((resumed / "generator.json").read_text())
    assert final["round"] == 6 and len(final["scores"]) == 3


def test_dry_run_prints_a_plan_and_writes_nothing(unlabelled_shards, tmp_path):
    done = run_job(
        1, "--dry-run", "--data.shards", str(unlabelled_shards), "--participation.policy", "random",
        "--participation.count", "2", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    from fedgan_mpi.config import ModelConfig
    from fedgan_mpi.nn.registry import build, count_parameters

    theta, phi = (count_parameters(n) for n in build(ModelConfig(), (1, 16, 16)))
    for text in (
        f"parameters of G         {theta:,}",
        f"parameters of D         {phi:,}",
        f"bytes down per round    {2 * 4 * (theta + phi):,}",
        f"bytes up per round      {2 * 4 * phi:,}",
        "images per device       6, 6, 6",
        "participants per round  2 of 3",
        'policy = "random"',
    ):
        assert text in done.stdout, done.stdout
    assert list(tmp_path.iterdir()) == []
    compressed = ("--aggregation.compression=top_k", "--aggregation.compression_options.share=0.01")
    done = run_job(
        1, "--dry-run", "--data.shards", str(unlabelled_shards), *compressed, cwd=tmp_path
    )
    message = 8 * round(0.01 * phi)  # an index and a number of four bytes each
    assert f"bytes up per round      {3 * message:,} ({message:,} per participant)" in done.stdout
    assert f"memory of the server    {3 * message:,} bytes for what devices send" in done.stdout
    done = run_job(
        1, "--dry-run", "--data.shards", str(unlabelled_shards), "--aggregation.rule=median",
        "--link.wire_dtype=float16", cwd=tmp_path,
    )  # fmt: skip
    row = 4 * phi  # in the type of the parameters
    assert f"memory of the server    {3 * row:,} bytes for what devices send" in done.stdout


def test_dry_run_states_the_memory_of_ensemble(unlabelled_shards, tmp_path):
    """One discriminator per device on the server; the downlink in shared memory."""
    from fedgan_mpi.config import ModelConfig
    from fedgan_mpi.nn.registry import build, count_parameters

    theta, phi = (count_parameters(n) for n in build(ModelConfig(), (1, 16, 16)))
    plan = ("--dry-run", "--data.shards", str(unlabelled_shards), "--algorithm.name")
    done = run_job(1, *plan, "ensemble", cwd=tmp_path)
    assert f"memory of the server    {3 * 4 * phi:,} bytes" in done.stdout, done.stderr
    assert f"shared memory           {4 * theta:,} bytes" in done.stdout
    assert "memory of" not in run_job(1, *plan, "ren", cwd=tmp_path).stdout


def test_help_is_printed_once(tmp_path):
    done = run_job(3, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.count("--training.rounds") == 2  # the flag, and the example


@pytest.mark.slow
def test_no_rank_imports_modules_that_it_does_not_use(tmp_path):
    """A job with rounds, scores and a report imports neither torch's compiler nor pyplot.

    The compiler takes as long to import as torch itself.
    """
    program = tmp_path / "list_modules.py"
    program.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from fedgan_mpi.__main__ import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "Path(f'imported_{os.getpid()}').write_text(' '.join(sys.modules))\n"
    )
    done = run_job(2, "--training.rounds", "1", *SMALL, cwd=tmp_path, program=(str(program),))
    assert done.returncode == 0, done.stderr
    imported = [set(path.read_text().split()) for path in tmp_path.glob("imported_*")]
    assert len(imported) == 2 and all("torch" in modules for modules in imported)
    for modules in imported:
        assert not {"torch._dynamo", "torch.distributed.fsdp", "matplotlib.pyplot"} & modules
