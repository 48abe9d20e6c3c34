"""TOML configurations: reading, writing, and the check of a resume."""

from __future__ import annotations

import re
from copy import deepcopy

import pytest
import tomli_w

from fedgan_mpi.cli.parser import parse_train
from fedgan_mpi.config import Config
from fedgan_mpi.config.io import check_resumable, config_table, read_config, read_provenance
from fedgan_mpi.config.parsing import DEFAULTS, flatten, make_config
from fedgan_mpi.errors import UserError
from fedgan_mpi.run.directory import write_config


def config(*arguments: str) -> Config:
    return parse_train(list(arguments)).config


def test_a_written_configuration_reads_back(tmp_path):
    written = config("--training.rounds", "3", "--model.nz", "5", "--link.average", "gather")
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps({**config_table(written), "provenance": {"host": "here"}}))
    assert read_config(path) == written


def test_null_overrides_a_default_and_reads_back(tmp_path):
    assert Config().link.deadline == 1800
    written = config("--link.deadline", "null")
    assert written.link.deadline is None
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(config_table(written)))
    assert read_config(path) == written


def test_a_section_without_keys_changes_nothing(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[training]\n# rounds = 3\n[model]\nnz = 5\n")
    assert config(str(file)) == config("--model.nz", "5")
    file.write_text("[trainning]\n")
    with pytest.raises(UserError, match="unknown key trainning"):
        parse_train([str(file)])


def test_provenance_keeps_earlier_jobs(tmp_path):
    for ranks in (3, 4, 5):
        write_config(tmp_path, config("--model.nz", "5"), {"ranks": ranks})
    assert read_config(tmp_path / "config.toml").model.nz == 5
    provenance = read_provenance(tmp_path)
    assert provenance["ranks"] == 5
    assert [earlier["ranks"] for earlier in provenance["earlier"]] == [3, 4]
    assert not any("earlier" in earlier for earlier in provenance["earlier"])


def test_a_resumed_run_is_the_same_experiment_or_a_longer_one(tmp_path):
    (tmp_path / "config.toml").write_text(
        tomli_w.dumps(config_table(config("--training.rounds", "9")))
    )
    resume = ["--resume", str(tmp_path)]
    assert config(*resume).training.rounds == 9
    assert config(*resume, "--training.rounds", "12").training.rounds == 12
    with pytest.raises(UserError, match=r"training\.rounds is 4, but must be at least 9 as in"):
        parse_train([*resume, "--training.rounds", "4"])
    with pytest.raises(UserError, match=r"model\.nz is 7, but must be 100 as in"):
        parse_train([*resume, "--model.nz", "7"])
    with pytest.raises(UserError, match=r"participation\.count is 3, but must be left out"):
        parse_train([*resume, "--participation.policy=random", "--participation.count=3"])


@pytest.mark.parametrize(
    "flag",
    [
        "--checkpoint.every=7",
        "--link.deadline=null",
        "--log.level=debug",
        "--log.per_rank=logs",
        "--training.overlap=false",
        "--training.pin=false",
    ],
)
def test_a_resume_may_change_options_that_do_not_affect_results(tmp_path, flag):
    (tmp_path / "config.toml").write_text(tomli_w.dumps(config_table(Config())))
    assert config("--resume", str(tmp_path), flag) == config(flag) != Config()


def test_a_configuration_without_newer_keys_can_be_resumed(tmp_path):
    table = config_table(config("--training.rounds", "9"))
    del table["log"], table["training"]["overlap"], table["link"]["deadline"]
    (tmp_path / "config.toml").write_text(tomli_w.dumps(table))
    assert config("--resume", str(tmp_path)) == config("--training.rounds", "9")
    # The configuration in its checkpoint lacks them, too.
    check_resumable(table, config_table(config("--training.rounds", "9")), tmp_path)


def test_values_must_be_text():
    """Bytes of the command line that are not UTF-8 would make config.toml unreadable."""
    for key in ("run.name", "run.directory", "data.shards"):
        with pytest.raises(UserError) as refused:
            make_config({**DEFAULTS, key: "b\udcffrd"})
        assert str(refused.value) == f"{key} is 'b\\udcffrd', but must be UTF-8 text"


def test_a_run_from_before_any_key_resumes_with_its_default(tmp_path):
    now = config_table(config("--training.rounds", "9"))
    for key in flatten(now):
        before = deepcopy(now)
        section, _, name = key.partition(".")
        del before[section][name]
        if key != "training.rounds":
            check_resumable(before, now, tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("training.batch_size", "8", "32"),
        ("training.betas", "[0.0, 0.9]", "[0.5, 0.999]"),
        ("training.generator_steps", "3", "left out"),
        ("model.conditional", "true", "False"),
    ],
)
def test_a_run_from_before_a_key_refuses_another_value_than_the_default(
    tmp_path, key, value, right
):
    before = config_table(config())
    section, _, name = key.partition(".")
    before[section].pop(name, None)
    with pytest.raises(UserError, match=rf"{key} is .*, but must be {re.escape(right)} as in"):
        check_resumable(before, config_table(config(f"--{key}", value)), tmp_path)
