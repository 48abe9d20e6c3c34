"""The paper's experiment as files: every variant is a valid experiment on equal terms, and the
tables say what the runs do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_fairness import DEVICES
from test_report import make_run
from whole_jobs import ENVIRONMENT, MPIRUN, SMALL

from fedgan_mpi.cli.parser import parse_train
from fedgan_mpi.config import Config

JOBS = Path(__file__).parents[2] / "jobs"
sys.path.insert(0, str(JOBS / "paper"))
import report  # noqa: E402
from variants import read_variants  # noqa: E402

PAPER = [JOBS / "paper" / f"{name}.toml" for name in ("celeba", "cifar10", "rsna")]
TABLE = JOBS / "paper" / "small" / "variants.txt"
SMALL_ONES = [JOBS / "paper" / "small" / f"{name}.toml" for name in ("mnist", "pneumonia")]


def experiments(table: Path, file: Path) -> dict[str, Config]:
    """Variant -> what it runs on a data set."""
    return {
        name: parse_train([str(file), *flags]).config
        for name, flags in read_variants(table).items()
    }


@pytest.mark.parametrize(
    ("table", "file"),
    [(JOBS / "paper" / "variants.txt", PAPER[0]), *((TABLE, file) for file in SMALL_ONES)],
    ids=lambda path: path.stem,
)
def test_all_methods_meet_on_equal_terms(table, file):
    """Learning rates, moments, batch, loss, networks; steps of D and of G over the whole run;
    images a score and scores a run. FedGAN's ten devices together see as many fakes a step as the
    server of ren does. Only the parallel schedule goes on for longer, at the same steps a round."""
    terms, steps, scores = set(), set(), set()
    variants = experiments(table, file)
    for name, config in variants.items():
        training, evaluation = config.training, config.evaluation
        terms.add(
            (
                training.generator_lr, training.discriminator_lr, training.betas,
                training.batch_size, training.loss, config.model, evaluation.samples,
                config.algorithm.moments, config.algorithm.statistics_rule,
                config.wireless, config.data.shards,
            )
        )  # fmt: skip
        of_d = training.rounds * training.discriminator_steps
        follows = config.algorithm.name == "fedgan"
        server = 1 if config.algorithm.name == "mdgan" else training.server_steps
        assert follows or training.rounds * server == of_d
        if config.algorithm.schedule == "serial":
            steps.add(of_d)
            scores.add(training.rounds / evaluation.every)
        else:
            assert training.rounds > variants["fedgan"].training.rounds
            assert evaluation.every == variants["fedgan"].evaluation.every
            assert training.discriminator_steps == server
        assert config.wireless.on and training.generator_batch_size == 10 * training.batch_size
        assert ("parallel" in name) == (config.algorithm.schedule == "parallel")
    assert len(terms) == len(steps) == len(scores) == 1
    assert {"ren-serial", "ren-parallel", "fedgan", "mdgan", "centralized"} <= set(variants)
    if table != TABLE:
        policies = ("random", "round_robin", "best_channel", "proportional_fair", "importance")
        for method in ("ren-serial", "ren-parallel", "fedgan"):
            for policy in policies:
                chosen = variants[f"{method}-{policy}"].participation
                assert (chosen.policy, chosen.participants(10)) == (policy, 5)


@pytest.mark.parametrize("file", PAPER, ids=lambda path: path.stem)
def test_the_paper_sized_set_is_at_the_papers_size(file):
    config = parse_train([str(file)]).config
    assert config.model.size == 64 and config.wireless.bits_per_parameter == 16
    assert config.data.shards == f"shards/{file.stem}"


def test_the_extras_are_valid_and_named_apart():
    extras = experiments(TABLE.with_name("extras.txt"), SMALL_ONES[0])
    assert len(extras) > 5 and not set(extras) & set(read_variants(TABLE))


@pytest.mark.jobs
def test_the_sweep_script_takes_variants_from_a_table(tmp_path):
    """Without SLURM: its variables are set, and the launcher is mpirun."""
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
    assert task(4).returncode == 1 and "array index 4 is beyond 2" in task(4).stderr


# ------------------------------------------------------------ the tables


@pytest.fixture
def finished(tmp_path) -> Path:
    """Two seeds of three methods whose scores are made up; a round costs 2 s and 1.5 MB."""
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


def test_ratios_are_costs_to_fedgans_best_score_of_the_same_seed(finished):
    runs = {
        name: report.read_runs(finished, f"toy-{name}")
        for name in ("ren-serial", "ren-parallel", "fedgan")
    }
    serial, fedgan = runs["ren-serial"], runs["fedgan"]
    # FedGAN's best: 30 after round 40 and 45 after round 20.
    assert report.ratio(serial[0], fedgan[0], "rounds") == 20 / 40
    assert report.ratio(serial[1], fedgan[1], "rounds") is None
    assert report.ratio(runs["ren-parallel"][1], fedgan[1], "megabytes") == 1
    text = report.acquire_lock({name: seeds for name, seeds in runs.items()})
    lines = {line.split(" | ")[0].strip("| "): line for line in text.splitlines()}
    assert "0.50 (1 of 2)" in lines["ren-serial"] and "no: 1 of 2 seeds" in lines["ren-serial"]
    assert "0.75 ± 0.35" in lines["ren-parallel"]  # 20/40 and 20/20
    assert lines["fedgan"].count("1.00 ± 0.00") >= 3


def test_reports_are_written_from_what_is_there(finished):
    names = ["ren-serial", "ren-parallel", "fedgan", "mdgan"]
    report.write_reports(finished, ["toy", "none"], names)
    written = {path.name for path in (finished / "report").iterdir()}
    assert written == {"claim.md", "sensitivity.md", "toy"}
    text = (finished / "report" / "sensitivity.md").read_text()
    for head in ("Speed of the server", "Bandwidth", "Speed of the devices", "other places"):
        assert head in text
    # A fast server leaves nothing to overlap; at the slowest, the round is the server's alone.
    rows = [line for line in text.split("Bandwidth")[0].splitlines() if "e+" in line]
    shares = [float(line.split(" | ")[3]) for line in rows]
    assert shares[-1] > 0.99 and min(shares) < 0.75
