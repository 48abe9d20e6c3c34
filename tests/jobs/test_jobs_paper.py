"""The experiments of jobs/paper: valid, equal for all algorithms, and tabulated correctly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import DEVICES, make_run
from PIL import Image

from fedgan_mpi.cli.parser import parse_train
from fedgan_mpi.config import Config, choose_by_size
from fedgan_mpi.testing.jobs import ENVIRONMENT, MPIRUN, SMALL

JOBS = Path(__file__).parents[2] / "jobs"
sys.path.insert(0, str(JOBS / "paper"))
import pictures  # noqa: E402
import report  # noqa: E402
from variants import read_variants  # noqa: E402

PAPER = [JOBS / "paper" / f"{name}.toml" for name in ("celeba", "cifar10", "rsna")]
TABLE = JOBS / "paper" / "small" / "variants.txt"
CIFAR_TABLE = TABLE.with_name("cifar_variants.txt")
SMALL_FILES = [JOBS / "paper" / "small" / f"{name}.toml" for name in ("mnist", "pneumonia")]


def experiments(table: Path, file: Path) -> dict[str, Config]:
    """Return variant -> configuration for a data set's file."""
    return {
        name: parse_train([str(file), *flags]).config
        for name, flags in read_variants(table).items()
    }


@pytest.mark.parametrize(
    ("table", "file"),
    [
        (JOBS / "paper" / "variants.txt", PAPER[0]),
        *((TABLE, file) for file in SMALL_FILES),
        (CIFAR_TABLE, TABLE.with_name("cifar.toml")),
    ],
    ids=lambda path: path.stem,
)
def test_all_algorithms_train_under_equal_conditions(table, file):
    """Equal optimizer, batch, loss, networks, total steps, and scores. A FedGAN step on all ten
    devices uses as many fakes as a server step of ren. Only the parallel schedule has more rounds.
    """
    conditions, steps, scores = set(), set(), set()
    variants = experiments(table, file)
    for name, config in variants.items():
        config = choose_by_size(config, (3, 32, 32))
        training, evaluation = config.training, config.evaluation
        model = config.model
        if name.endswith("-no-norm"):
            assert model.discriminator_norm == "none"
            model = replace(model, discriminator_norm="batch")  # the only difference
        conditions.add(
            (
                training.generator_lr, training.discriminator_lr, training.betas,
                training.batch_size, training.loss, model, evaluation.samples,
                config.algorithm.moments, config.algorithm.statistics_rule,
                config.wireless, config.data.shards,
            )
        )  # fmt: skip
        steps_on_d = training.rounds * training.discriminator_steps
        takes_one = config.algorithm.name in ("mdgan", "uagan")
        server_steps = 1 if takes_one else training.generator_steps
        if config.algorithm.name != "fedgan":
            assert training.rounds * server_steps == steps_on_d
        if config.algorithm.schedule == "serial":
            steps.add(steps_on_d)
            scores.add(training.rounds / evaluation.every)
        else:
            assert training.rounds > variants["fedgan"].training.rounds
            assert evaluation.every == variants["fedgan"].evaluation.every
            assert training.discriminator_steps == server_steps
        assert config.wireless.on and training.generator_batch_size == 10 * training.batch_size
        assert ("parallel" in name) == (config.algorithm.schedule == "parallel")
    assert len(conditions) == len(steps) == len(scores) == 1
    assert {"ren-serial", "ren-parallel", "fedgan", "mdgan", "centralized"} <= set(variants)
    if table.parent == JOBS / "paper":
        policies = ("random", "round_robin", "best_channel", "proportional_fair", "importance")
        for name in ("ren-serial", "ren-parallel", "fedgan"):
            for policy in policies:
                participation = variants[f"{name}-{policy}"].participation
                assert (participation.policy, participation.participants(10)) == (policy, 5)


@pytest.mark.parametrize("file", PAPER, ids=lambda path: path.stem)
def test_large_experiments_have_64_pixels_and_16_bit_numbers(file):
    config = parse_train([str(file)]).config
    assert config.model.size == 64 and config.wireless.bits_per_parameter == 16
    assert config.data.shards == f"shards/{file.stem}"


def test_the_extras_are_valid_and_have_other_names():
    extras = experiments(TABLE.with_name("extras.txt"), SMALL_FILES[0])
    assert len(extras) > 5 and not set(extras) & set(read_variants(TABLE))


@pytest.mark.slow
@pytest.mark.jobs
def test_the_sweep_script_reads_variants_from_a_table(tmp_path):
    """Without SLURM: the test sets its variables, and mpirun starts the ranks."""
    shutil.copytree(JOBS, tmp_path / "jobs")
    site = tmp_path / "jobs" / "site.sh"
    site.write_text(f'LAUNCH="{MPIRUN} -n 3"\n')
    table = tmp_path / "variants.txt"
    table.write_text(
        "# name and flags\n\nplain\n"
        "some   --algorithm.name fedgan  --participation.policy random --participation.count 2\n"
    )
    environment = {
        **ENVIRONMENT,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "VARIANTS": str(table),
        "SEEDS": "4 5",
        "SLURM_JOB_NAME": "sweep",
        "SLURM_JOB_NUM_NODES": "1",
    }

    def task(index: int) -> subprocess.CompletedProcess[str]:
        flags = ["--training.rounds", "1", "--data.devices", "3", *SMALL]
        return subprocess.run(
            ["bash", "jobs/sweep.sbatch", *flags], cwd=tmp_path, capture_output=True, text=True,
            env={**environment, "SLURM_ARRAY_TASK_ID": str(index)}, timeout=120,
        )  # fmt: skip

    for index, name in ((1, "sweep-plain-seed5"), (2, "sweep-some-seed4")):
        done = task(index)
        assert done.returncode == 0, done.stderr
        config = parse_train([str(tmp_path / "runs" / name / "config.toml")]).config
        assert config.run.seed == int(name[-1])
        assert config.participation.count == (2 if "some" in name else None)
        assert config.algorithm.name == ("fedgan" if "some" in name else "ren")
    refused = task(4)
    assert refused.returncode == 1
    assert "array index is 4, but must be below 4: 2 variants, 2 seeds" in refused.stderr


# ------------------------------------------------------------ the tables


@pytest.fixture
def finished(tmp_path) -> Path:
    """Two seeds of three algorithms with made-up scores. A round costs 2 s and 1.5 MB."""
    (tmp_path / "runs").mkdir()
    scores = {
        "ren-serial": ({0: 90, 10: 50, 20: 20, 40: 10}, {0: 90, 10: 60, 20: 50, 40: 50}),
        "ren-parallel": ({0: 90, 20: 30, 40: 30}, {0: 90, 20: 20, 40: 20}),
        "fedgan": ({0: 90, 20: 60, 40: 30}, {0: 90, 20: 45, 40: 47}),
    }
    for name, seeds in scores.items():
        for seed, by_round in enumerate(seeds):
            flags = ["--algorithm.name=fedgan"] if name == "fedgan" else []
            flags += ["--algorithm.schedule=parallel"] if "parallel" in name else []
            run = make_run(
                tmp_path / "runs" / f"toy-{name}-seed{seed}", by_round, f"--run.seed={seed}",
                "--wireless.on=true", "--model.width=8", *flags,
            )  # fmt: skip
            (run / "devices.json").write_text(json.dumps(DEVICES))
            (run / "report.html").write_text("")
    return tmp_path


def test_ratios_compare_costs_of_fedgans_best_score_with_the_same_seed(finished):
    every_run = report.read_runs(finished)
    runs = {
        name: report.select(every_run, f"toy-{name}")
        for name in ("ren-serial", "ren-parallel", "fedgan")
    }
    serial, parallel, fedgan = runs.values()
    # FedGAN's best: 30 after round 40 and 45 after round 20.
    assert report.cost_ratios(serial, fedgan, "rounds") == [20 / 40, None]
    assert report.cost_ratio(parallel[1], fedgan[1], "megabytes") == 1
    text = report.claim_table(runs)
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    assert "0.50 (1 of 2)" in lines["ren-serial"] and "no: 1 of 2 seeds" in lines["ren-serial"]
    assert "0.75 ± 0.35" in lines["ren-parallel"]  # 20/40 and 20/20
    assert lines["fedgan"].count("1.00 ± 0.00") >= 3


def test_reports_cover_the_runs_that_exist(finished):
    names = ["ren-serial", "ren-parallel", "fedgan", "mdgan"]
    report.write_reports(finished, {"toy": names, "none": names})
    written = {path.name for path in (finished / "report").iterdir()}
    assert written == {"claim.md", "sensitivity.md", "toy"}
    assert "ImageNet" not in (finished / "report" / "claim.md").read_text()  # not scored
    text = (finished / "report" / "sensitivity.md").read_text()
    for heading in ("Speed of the server", "Bandwidth", "Speed of the devices", "placements"):
        assert heading in text
    # Overlap saves nothing with a fast server, and most if both branches take equally long.
    rows = [line for line in text.split("Bandwidth")[0].splitlines() if "e+" in line]
    shares = [float(line.split(" | ")[3]) for line in rows]
    assert shares[-1] > 0.99 and min(shares) < 0.75


def test_the_best_and_the_last_generator_of_each_algorithm_are_drawn(tmp_path, monkeypatch):
    """The second algorithm's best generator makes dark images, and its last one bright ones."""
    asked = []

    def load(path):
        def generate(count, seed):
            asked.append((path.parent.name, path.name, seed))
            brightness = 20 if path.stem == "generator_best" else 220
            return np.full((count, 1, 8, 8), brightness, np.uint8)

        return generate

    monkeypatch.setattr(pictures, "load_generator", load)
    pictures.draw_samples({"a": tmp_path / "a", "b": tmp_path / "b"}, tmp_path / "samples.png")
    names = ("generator_best.safetensors", "generator.safetensors")
    assert asked == [(run, name, 0) for run in "ab" for name in names]
    picture = np.asarray(Image.open(tmp_path / "samples.png").convert("L"))
    height, width = picture.shape
    column = picture[:, 3 * width // 4]
    assert (column[height // 4], column[3 * height // 4]) == (20, 220)


def test_imagenet_scores_of_both_generators_stand_beside_the_floor(finished):
    for seed, (best, last) in enumerate([(80.0, 90.0), (84.0, 96.0)]):
        lines = [
            {"of": {"generator": f"{file}.safetensors"}, "value": value, "floor": 10.0 + seed}
            for file, value in (("generator", last), ("generator_best", best))
        ]
        path = finished / "runs" / f"toy-fedgan-seed{seed}" / "evaluation.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs = report.select(report.read_runs(finished), "toy-fedgan")
    text = report.imagenet_table({"fedgan": runs})
    assert "| fedgan | 82.0 ± 2.8 | 93.0 ± 4.2 | 10.5 ± 0.7 |" in text


def test_runs_outside_the_variants_are_listed_as_extras(finished):
    extra = finished / "runs" / "toy-serial-one-seed0"
    shutil.copytree(finished / "runs" / "toy-ren-serial-seed0", extra)
    report.write_reports(finished, {"toy": ["ren-serial", "ren-parallel", "fedgan"]})
    text = (finished / "report" / "extras.md").read_text()
    (row,) = [line for line in text.splitlines() if "toy-serial-one" in line]
    assert "| 10.0 | 10.0 |" in row and "| 0.50 | 40 to 40 | 1.00 |" in row
