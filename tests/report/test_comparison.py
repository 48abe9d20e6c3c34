"""Comparisons of runs: their tables and pages, and the runs that they refuse."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import add_devices, make_run
from PIL import Image

from fedgan_mpi.errors import UserError
from fedgan_mpi.report.comparison import write_comparison
from fedgan_mpi.report.page import write_report
from fedgan_mpi.run.image_grids import write_animation


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    fedgan = "--algorithm.name=fedgan"
    return [
        make_run(tmp_path / "s0", {0: 100, 20: 30, 40: 10}),
        make_run(tmp_path / "s1", {0: 100, 20: 14, 40: 20}, "--run.seed=1"),
        make_run(tmp_path / "f0", {0: 100, 20: 80, 40: 50}, fedgan),
    ]


def test_costs_count_up_to_the_first_score_at_the_target(runs, tmp_path):
    ren, fedgan = write_comparison(runs, tmp_path / "out")
    assert ren["configuration"] == "ren serial" and fedgan["configuration"] == "fedgan"
    assert ren["seeds"] == "2" and fedgan["seeds"] == "1"
    assert ren["final"] == "15 ± 7.07" and ren["best"] == "12 ± 2.83"
    # The target is fedgan's best, 50. Both other runs reach it at round 20, after 40 s and 30 MB.
    assert ren["rounds to target"] == "20 ± 0" and ren["seconds to target"] == "40 ± 0"
    assert ren["MB to target"] == "30 ± 0" and fedgan["MB to target"] == "60"
    ren, fedgan = write_comparison(runs, tmp_path / "out", target=12)
    assert ren["rounds to target"] == "40 [1/2]" and fedgan["rounds to target"] == "never [0/1]"
    with open(tmp_path / "out" / "table.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [ren, fedgan]


def test_pages_and_films_show_all_grids(runs, tmp_path):
    write_comparison(runs, tmp_path / "out")
    write_animation(runs[0] / "training.gif", sorted(runs[0].glob("samples/*.png")))
    write_report(runs[0])
    for page, grids in ((tmp_path / "out" / "index.html", 6), (runs[0] / "report.html", 3)):
        assert page.read_text().count('<figure><img src="data:image/png;') == grids
    with Image.open(tmp_path / "out" / "curves.png") as picture:
        assert picture.size[0] > 1000 and len(np.unique(np.asarray(picture))) > 20
    with Image.open(runs[0] / "training.gif") as film:
        assert film.n_frames == 3


def test_labels_name_the_settings_that_differ(tmp_path):
    one = make_run(tmp_path / "a", {0: 9, 40: 5})
    other = make_run(tmp_path / "b", {0: 9, 40: 4}, "--training.batch_size=16")
    labels = [row["configuration"] for row in write_comparison([one, other], tmp_path / "out")]
    assert labels == ["ren serial batch_size 32", "ren serial batch_size 16"]


def test_fairness_is_compared_if_a_policy_selects_devices(tmp_path):
    everyone = add_devices(make_run(tmp_path / "a", {0: 9, 40: 5}), (1, 2, 3))
    flags = ["--participation.policy=random", "--participation.count=2"]
    some = add_devices(make_run(tmp_path / "b", {0: 9, 40: 4}, *flags), (1, 2))
    (row,) = write_comparison([everyone], tmp_path / "out")
    assert "Jain index" not in row
    rows = write_comparison([everyone, some], tmp_path / "out")
    assert [row["Jain index"] for row in rows] == ["1", "0.6667"]
    assert rows[1]["total variation of classes"] == f"{0.75 - 250 / 420:.4g}"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"samples": 99},
            "/b cannot be compared with .*/s0: its images per score: 99, but must be 100",
        ),
        (
            {"metric": "frechet_pca_distance-0"},
            "/b cannot .* its metric .*: frechet_pca_distance-0, but must be frechet_classifier",
        ),
        (
            {"shards": "b" * 64},
            "/b .* its SHA-256 of shards: bbbbbbbbbbbb, but must be aaaaaaaaaaaa",
        ),
        ({}, "/b and .*/s0 have the same configuration and seed; leave one out"),
    ],
)
def test_incomparable_runs_are_refused_by_name(runs, tmp_path, change, sentence):
    other = make_run(tmp_path / "b", {0: 100, 40: 20}, **change)
    with pytest.raises(UserError, match=sentence):
        write_comparison([*runs, other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda text: text[:-20], "is damaged or of an older version"),
        (lambda text: text.replace('"seconds"', '"time"'), "is damaged or of an older version"),
        (lambda text: text.split("\n", 4)[4], "is damaged or of an older version"),
        (lambda text: re.sub(r".*metric.*\n", "", text), "has no scores"),
        (None, "stats.jsonl cannot be read: No such file"),
    ],
)
def test_incomplete_and_older_runs_are_refused(runs, tmp_path, damage, sentence):
    stats = runs[2] / "stats.jsonl"
    if damage is None:
        stats.unlink()
    else:
        stats.write_text(damage(stats.read_text()))
    with pytest.raises(UserError, match=sentence):
        write_comparison(runs, tmp_path / "out")


def test_a_directory_that_is_no_run_and_a_repeated_run_are_refused(runs, tmp_path):
    with pytest.raises(UserError, match=r"samples/config.toml cannot be read"):
        write_comparison([runs[0] / "samples"], tmp_path / "out")
    with pytest.raises(UserError, match="s0"):
        write_comparison([runs[0], runs[0]], tmp_path / "out")
