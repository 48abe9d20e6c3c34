"""Who took part how often, in reports of runs whose numbers are made up, and rounds timed anew."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_report import make_run

from fedgan_mpi.config import WirelessConfig
from fedgan_mpi.errors import UserError
from fedgan_mpi.report.fairness import Devices, fairness, read_devices
from fedgan_mpi.report.history import read_history
from fedgan_mpi.report.page import write_comparison, write_report
from fedgan_mpi.wireless.cell import Cell

DEVICES = {
    "image_shape": [1, 32, 32],
    "class_names": ["a", "b"],
    "images": [100, 300, 20],
    "histograms": [[100, 0], [150, 150], [0, 20]],
}


def lines(*participants: tuple[int, ...]) -> list[dict]:
    return [{"participants": list(each)} for each in participants]


def with_devices(run: Path, *participants: tuple[int, ...]) -> Path:
    """A made-up run with devices, its rounds played by these in turn."""
    (run / "devices.json").write_text(json.dumps(DEVICES))
    made = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    for line in made:
        if "metric" not in line:
            line["participants"] = list(participants[(line["round"] - 1) % len(participants)])
    (run / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made))
    return run


def test_times_jain_and_classes_by_hand():
    devices = Devices(**{**DEVICES, "image_shape": (1, 32, 32)})
    told = fairness(lines((1, 2), (1, 3), (1, 2)), devices, batch_size=32)
    assert told.times == [3, 2, 1]
    assert told.jain == pytest.approx(6**2 / (3 * (9 + 4 + 1)))
    # 3 batches of 32 a's; 2 of 32, half each; 1 of 20 b's, all that device 3 has.
    a, b = 3 * 32 + 2 * 16, 2 * 16 + 20
    assert told.classes_seen == pytest.approx([a / (a + b), b / (a + b)])
    assert told.classes_held == pytest.approx([250 / 420, 170 / 420])
    assert told.total_variation == pytest.approx(a / (a + b) - 250 / 420)
    assert told.sentence() == (
        "devices took part in 1 to 3 rounds, fairness 0.857 (Jain); classes seen differ from "
        f"those held by {told.total_variation:.3g}"
    )


def test_even_and_lonely_participation_are_the_ends_of_jains_index():
    devices = Devices(**{**DEVICES, "image_shape": (1, 32, 32)})
    assert fairness(lines((1,), (2,), (3,)), devices, 32).jain == 1
    assert fairness(lines((2,), (2,)), devices, 32).jain == pytest.approx(1 / 3)
    assert fairness([], devices, 32).total_variation is None


def test_who_was_skipped_took_no_part():
    devices = Devices(**{**DEVICES, "image_shape": (1, 32, 32)})
    rounds = [{"participants": [1, 2], "skipped": [2]}, {"participants": [2, 3]}]
    assert fairness(rounds, devices, 32).times == [1, 1, 1]


def test_without_labels_there_are_no_classes():
    plain = Devices(image_shape=(1, 8, 8), class_names=[], images=[5, 5], histograms=[[], []])
    told = fairness(lines((1,), (1, 2)), plain, 4)
    assert told.total_variation is None and "classes" not in told.sentence()


def test_a_report_shows_participation_and_the_cell(tmp_path):
    policy = ["--participation.policy=best_channel", "--participation.count=2"]
    run = with_devices(make_run(tmp_path / "a", {0: 9, 40: 5}, *policy), (1, 2), (1, 3), (1, 2))
    write_report(run)
    page = (run / "report.html").read_text()
    assert "devices took part in 13 to 40 rounds" in page
    assert "mean rate up, Mbit/s" in page and "59.5%" in page
    with Image.open(run / "cell.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 50 and (run / "cell.png").stat().st_size < 100_000


def test_without_clock_and_channels_there_is_no_cell_and_without_devices_no_section(tmp_path):
    run = with_devices(make_run(tmp_path / "a", {0: 9, 40: 5}), (1, 2, 3))
    write_report(run)
    assert not (run / "cell.png").exists()
    assert "devices took part in 40 to 40 rounds" in (run / "report.html").read_text()
    (run / "devices.json").unlink()
    write_report(run)
    assert "took part" not in (run / "report.html").read_text()


def test_a_comparison_tells_fairness_where_somebody_is_chosen(tmp_path):
    everyone = with_devices(make_run(tmp_path / "a", {0: 9, 40: 5}), (1, 2, 3))
    flags = ["--participation.policy=random", "--participation.count=2"]
    some = with_devices(make_run(tmp_path / "b", {0: 9, 40: 4}, *flags), (1, 2))
    (row,) = write_comparison([everyone], tmp_path / "out")
    assert "fairness (Jain)" not in row
    rows = write_comparison([everyone, some], tmp_path / "out")
    assert [row["fairness (Jain)"] for row in rows] == ["1", "0.6667"]
    assert rows[1]["classes seen, off by"] == f"{0.75 - 250 / 420:.4g}"


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: {**table, "images": [1, 2]},
        lambda table: {**table, "images": [-1, 2, 3]},
        lambda table: {**table, "histograms": [[1], [2], [3]]},
        lambda table: {**table, "more": 1},
        lambda table: {"images": [1]},
        lambda table: [],
    ],
)
def test_damaged_devices_are_refused(tmp_path, damage):
    (tmp_path / "devices.json").write_text(json.dumps(damage(DEVICES)))
    with pytest.raises(UserError, match=r"devices.json is damaged"):
        read_devices(tmp_path)


# ------------------------------------------------------------ rounds timed anew


def test_rounds_are_timed_anew_by_the_same_formulas(tmp_path):
    """On another cell, from participants alone; a serial round of ren, by hand."""
    flags = ["--participation.policy=random", "--participation.count=2", "--model.width=16"]
    run = read_history(with_devices(make_run(tmp_path / "a", {0: 9, 40: 5}, *flags), (1, 3), (2,)))
    cell = WirelessConfig(fading="none", device_macs_per_second=(1e9, 2e9, 3e9), seed=4)
    timed = run.with_clock(cell)
    assert "wireless_seconds" not in run.rounds[0]
    metres = Cell(cell, 3).distances_m

    def rate(k: int, power_dbm: float, hertz: float) -> float:
        loss = 128.1 + 37.6 * math.log10(metres[k - 1] / 1000)
        return hertz * math.log2(1 + 10 ** ((power_dbm - loss + 174) / 10) / hertz)

    theta, phi = 143_840, 42_432
    step = 3 * 64 * 5.777408e6 / 1e12  # n_g = 3, 64 fakes
    for line, present in zip(timed.rounds[:2], ((1, 3), (2,)), strict=True):
        share, batches = 10e6 / len(present), {1: 32, 2: 32, 3: 20}
        expected = 16 * (theta + phi) / min(rate(k, 46, 10e6) for k in present)
        expected += max(
            batches[k] * (1.216512e6 + 6.559744e6) / (k * 1e9) + 16 * phi / rate(k, 24, share)
            for k in present
        )
        expected += len(present) * phi / 1e12 + step
        assert line["wireless_seconds"] == pytest.approx(expected, rel=1e-9)
    assert timed.cost("wireless")[-1] == pytest.approx(
        sum(line["wireless_seconds"] for line in timed.rounds)
    )
    narrow = timed.with_clock(replace(cell, bandwidth_hz=1e6))
    assert narrow.cost("wireless")[-1] > 2 * timed.cost("wireless")[-1]


def test_who_was_chosen_by_a_cell_is_not_timed_on_another(tmp_path):
    flags = ["--participation.policy=best_channel", "--participation.count=2"]
    run = with_devices(make_run(tmp_path / "a", {0: 9, 40: 5}, *flags), (1, 2))
    with pytest.raises(UserError, match="a cannot be timed anew: best_channel chose by its own"):
        read_history(run).with_clock(WirelessConfig())
    run = make_run(tmp_path / "b", {0: 9, 40: 5})
    with pytest.raises(UserError, match="does not say what its devices hold"):
        read_history(run).with_clock(WirelessConfig())
