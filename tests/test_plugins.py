"""Third-party code in place of a built-in name: from a file, or installed as a package.

The code is tests/outsider.py, copied into a directory that the program does not know.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from outsider_mistakes import UNUSABLE, WRONG, named

import fedgan_mpi
from fedgan_mpi import plugins
from fedgan_mpi.config.options import SEVERAL
from fedgan_mpi.errors import UserError
from fedgan_mpi.testing import jobs
from fedgan_mpi.testing.checks import check_algorithm, check_extractor, check_networks
from fedgan_mpi.testing.jobs import run_job
from fedgan_mpi.testing.runs import copy_without_last_checkpoint, generator_bytes, stats_lines

FILE = Path(__file__).with_name("outsider.py")
SHORT = ["--data.devices=3", "--training.rounds=2", "--model.nz=4", "--link.average=gather"]
ALL = {
    "model.architecture": "build",
    "model.options.width": "12",
    "algorithm.name": "Logs",
    "algorithm.options.factor": "2",
    "training.loss": "margin",
    "training.loss_options.size": "2",
    "training.optimizer": "Slower",
    "training.optimizer_options.part": "0.25",
    "training.augment": "Noise",
    "participation.policy": "Odd",
    "participation.count": "2",
    "aggregation.rule": "Shares",
    "aggregation.server_optimizer": "Halfway",
    "aggregation.server_options.part": "0.75",
    "aggregation.compression": "Signs",
    "aggregation.compression_options.scale": "0.001",
    "aggregation.detector": "Highest",
    "aggregation.detector_options.decay": "0.5",
    "evaluation.extractor": "cells",
    "evaluation.extractor_options.side": "3",
    "evaluation.metrics": "MeanGap",
    "evaluation.every": "1",
    "record.trackers": "Journal",
}
"""Key -> name in outsider.py or option, for every kind of plug-in."""
BUILT_IN = {
    "training.augment": "flip", "evaluation.metrics": "frechet", "record.trackers": "tensorboard",
}  # fmt: skip
"""Keys that list several names -> another one in the list."""


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """Permit nothing that an earlier test has permitted."""
    for name in ("_allowed", "_registered", "_loaded", "_files"):
        monkeypatch.setattr(plugins, name, type(getattr(plugins, name))())


@pytest.fixture
def cwd(tmp_path, monkeypatch) -> Path:
    shutil.copy(FILE, tmp_path / "parts.py")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flags(prefix: str) -> list[str]:
    """Return flags that choose every part of outsider.py by `prefix` and its name."""
    given = dict(ALL)
    for key in plugins.KEYS:
        if key in SEVERAL:
            given[key] = json.dumps([BUILT_IN[key], prefix + given[key]])
        else:
            given[key] = prefix + given[key]
    return [f"--{key}={value}" for key, value in given.items()]


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command without mpirun."""
    return subprocess.run(
        [sys.executable, "-m", "fedgan_mpi", *arguments],
        cwd=cwd, capture_output=True, text=True, env=jobs.ENVIRONMENT, timeout=120,
    )  # fmt: skip


# ---------------------------------------------------------------- they do their part


@pytest.mark.jobs
def test_every_kind_of_plug_in_from_a_file(cwd):
    done = run_job(3, "--run.name=a", *SHORT, *flags("parts.py:"), cwd=cwd)
    assert done.returncode == 0, done.stderr
    lines = stats_lines(cwd / "runs" / "a")
    rounds = [line for line in lines if "d_loss" in line]
    assert [line["participants"] for line in rounds] == [[1, 3], [1, 3]]
    shares = [line["d_loss"] for line in rounds]
    assert all(loss > 0 for loss in shares)
    # 2 · index, averaged over devices 1 and 3, which have 180 and 179 images of 1,438 in 8 shards
    assert all(2 < line["twice_the_index"] < 6 for line in rounds)
    names = {line["metric"].partition("-")[0] for line in lines if "metric" in line}
    assert names - {"feature_spread"} == {"frechet_cells_distance", "gap_cells"}
    journal = (cwd / "runs" / "a" / "journal").read_text().split()
    assert journal == ["begin", "round", "round", "close"]

    # A directory of a run never chooses what code runs.
    run, copy = cwd / "runs" / "a", cwd / "runs" / "b"
    (cwd / "imported").unlink()
    for words in (["sample", "runs/a"], ["evaluate", "runs/a"], ["--resume", "runs/a"]):
        refused = command(*words, cwd=cwd)
        assert refused.returncode == 1 and refused.stderr.count("\n") == 1, refused.stderr
        assert "in this run, which is code outside of the program" in refused.stderr
    with pytest.raises(UserError, match=r"--model.architecture parts.py:build"):
        fedgan_mpi.load_generator(run)
    assert command("watch", "runs/a", "--once", cwd=cwd).returncode == 0
    assert not (cwd / "imported").exists()

    # Named by the user, it does.
    assert fedgan_mpi.load_generator(run, networks="parts.py:build")(5).shape == (5, 1, 16, 16)
    named = "--model.architecture=parts.py:build"
    assert command("sample", "runs/a", "--out=s.png", named, cwd=cwd).returncode == 0
    copy_without_last_checkpoint(run, copy)
    if list((copy / "checkpoints").iterdir()):
        chosen = [flag for flag in flags("parts.py:") if "options" not in flag]
        resumed = run_job(2, "--resume=runs/b", *chosen, cwd=cwd)
        assert resumed.returncode == 0, resumed.stderr
        assert generator_bytes(run) == generator_bytes(copy)


@pytest.mark.jobs
def test_an_installed_package_has_short_names(tmp_path, monkeypatch):
    site, cwd = tmp_path / "site", tmp_path / "work"
    information = site / "outsider-1.2.dist-info"
    for directory in (site, information, cwd):
        directory.mkdir()
    shutil.copy(FILE, site / "outsider.py")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.2\n")
    points = [
        f"[fedgan_mpi.{group}]\nown-{ALL[key]} = outsider:{ALL[key]}\n"
        for key, group in plugins.KEYS.items()
    ]
    (information / "entry_points.txt").write_text("\n".join(points))
    monkeypatch.setitem(jobs.ENVIRONMENT, "PYTHONPATH", str(site))

    listed = command("plugins", cwd=cwd).stdout
    for key in plugins.KEYS:
        assert f"own-{ALL[key]}" in listed
    assert "outsider 1.2" in listed and "Two small networks." in listed
    assert not (site / "imported").exists()  # listing runs nothing

    done = run_job(2, "--run.name=a", *SHORT, *flags("own-"), cwd=cwd, forked=False)
    assert done.returncode == 0, done.stderr
    # Installed code needs no permission.
    assert command("sample", "runs/a", "--out=s.png", cwd=cwd).returncode == 0
    assert command("evaluate", "runs/a", cwd=cwd).returncode == 0
    wrong = command("--model.architecture=own-bild", cwd=cwd)
    assert "did you mean 'own-build'?" in wrong.stderr and wrong.stderr.count("\n") == 1


@pytest.mark.jobs
def test_the_checks_for_authors_pass_for_the_strangers_parts(cwd):
    check_networks("parts.py:build", classes=3, options={"width": 5})
    check_extractor("parts.py:cells")
    check_algorithm(
        f"{cwd}/parts.py:Mine", oracle="ren --algorithm.schedule=serial", ranks=(1, 2, 3, 4)
    )


def test_the_checks_for_authors_find_faults(cwd):
    with pytest.raises(UserError, match=r"parts.py:build_one"):
        check_networks("parts.py:build_one")
    with pytest.raises(UserError, match=r"parts.py:moody.* gives other features"):
        check_extractor("parts.py:moody")


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(("config", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_a_mistake_is_one_sentence_before_the_first_round(cwd, config, sentence):
    with pytest.raises(UserError) as error:
        fedgan_mpi.train(short(config))
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert not any(stats_lines(path.parent) for path in cwd.glob("runs/*/stats.jsonl"))


def short(config: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """Return the configuration with three rounds of three devices."""
    small = {"data": {"devices": 3}, "training": {"rounds": 3}, "evaluation": {"every": 0}}
    return {
        section: {**small.get(section, {}), **config.get(section, {})}
        for section in {*small, *config}
    }


# ---------------------------------------------------------------- in the middle of a run

FAILING = {
    "networks": named("model.architecture", "build_and_fail"),
    "algorithm": named("algorithm.name", "Fails"),
    "augmentation": named("training.augment", "FailsToAugment"),
    "policy": named("participation.policy", "FailsToChoose"),
    "rule": named("aggregation.rule", "FailsToCombine"),
    "metric": named("evaluation.metrics", "FailsToScore"),
}


@pytest.mark.parametrize("config", FAILING.values(), ids=FAILING.keys())
def test_an_error_in_the_middle_names_the_plug_in(cwd, config):
    ((section, table),) = config.items()
    (key, value), *_ = table.items()
    name = value[-1] if isinstance(value, list) else value
    if section == "participation":
        table = {**table, "count": 2}
    with pytest.raises(RuntimeError, match="boom") as error:
        fedgan_mpi.train(short({section: table}))
    sentence = plugins.blame(error.value)
    assert sentence is not None and f"{section}.{key} {name!r}" in sentence
    assert f"{cwd / 'parts.py'} line" in sentence


def test_a_bug_of_the_program_blames_no_plug_in():
    with pytest.raises(ZeroDivisionError) as error:
        _ = 1 / 0
    assert plugins.blame(error.value) is None


@pytest.mark.jobs
def test_a_failing_plug_in_ends_a_job_on_every_rank(cwd):
    done = run_job(3, *SHORT, "--algorithm.name=parts.py:Fails", cwd=cwd, timeout=60)
    assert done.returncode != 0
    assert "RuntimeError: boom" in done.stderr
    assert "raised in the code of algorithm.name 'parts.py:Fails'" in done.stderr


@pytest.mark.parametrize(("config", "sentence"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_an_unusable_answer_is_one_sentence(cwd, config, sentence):
    with pytest.raises(UserError) as error:
        fedgan_mpi.train(short(config))
    assert sentence in str(error.value)


def test_a_logged_name_must_be_free(cwd):
    config = named("algorithm.name", "Logs", factor=1.0, under="d_loss")
    with pytest.raises(ValueError, match=r"d_loss is a key of stats.jsonl"):
        fedgan_mpi.train(short(config))
