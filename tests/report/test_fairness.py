"""Fairness of participation, and its section in the report of a run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from made_up_runs import DEVICES, add_devices, make_run
from PIL import Image

from fedgan_mpi.errors import UserError
from fedgan_mpi.report.device_data import DeviceData, read_device_data
from fedgan_mpi.report.fairness import compute_fairness
from fedgan_mpi.report.page import write_report

DATA = DeviceData(**{**DEVICES, "image_shape": (1, 32, 32)})


def rounds(*participants: tuple[int, ...]) -> list[dict]:
    return [{"participants": list(round)} for round in participants]


def test_participation_and_class_balance_match_hand_calculation():
    fairness = compute_fairness(rounds((1, 2), (1, 3), (1, 2)), DATA, batch_size=32)
    assert fairness.participations == [3, 2, 1]
    assert fairness.jain == pytest.approx(6**2 / (3 * (9 + 4 + 1)))
    # Device 1: 3 batches of 32 a. Device 2: 2 batches of 16 a and 16 b. Device 3: one of 20 b.
    a, b = 3 * 32 + 2 * 16, 2 * 16 + 20
    assert fairness.classes_seen == pytest.approx([a / (a + b), b / (a + b)])
    assert fairness.classes_held == pytest.approx([250 / 420, 170 / 420])
    assert fairness.total_variation == pytest.approx(a / (a + b) - 250 / 420)
    assert fairness.summary() == (
        "Participation: devices took part in 1 to 3 of 3 rounds (Jain index 0.86). Class balance "
        f"seen in training differs from the data (total variation {fairness.total_variation:.4f})."
    )


def test_full_participation_with_balanced_classes_is_summarized_in_words():
    data = DeviceData(
        image_shape=(1, 8, 8), class_names=["a", "b"], images=[64, 64], histograms=[[32, 32]] * 2
    )
    assert compute_fairness(rounds((1, 2), (1, 2)), data, 32).summary() == (
        "Participation: every device took part in all 2 rounds (Jain index 1.00). "
        "Class balance seen in training matches the data (total variation 0.0000)."
    )


def test_jains_index_is_1_for_equal_and_1_over_k_for_single_participation():
    assert compute_fairness(rounds((1,), (2,), (3,)), DATA, 32).jain == 1
    assert compute_fairness(rounds((2,), (2,)), DATA, 32).jain == pytest.approx(1 / 3)
    assert compute_fairness([], DATA, 32).total_variation is None


def test_skipped_participants_count_as_absent():
    lines = [{"participants": [1, 2], "skipped": [2]}, {"participants": [2, 3]}]
    fairness = compute_fairness(lines, DATA, 32)
    assert fairness.participations == [1, 1, 1]
    assert "every device took part in 1 of 2 rounds" in fairness.summary()


def test_without_labels_there_is_no_class_balance():
    data = DeviceData(image_shape=(1, 8, 8), class_names=[], images=[5, 5], histograms=[[], []])
    fairness = compute_fairness(rounds((1,), (1, 2)), data, 4)
    assert fairness.total_variation is None and "Class" not in fairness.summary()


def test_a_report_shows_participation_and_the_cell(tmp_path):
    policy = ["--participation.policy=best_channel", "--participation.count=2"]
    run = add_devices(make_run(tmp_path / "a", {0: 9, 40: 5}, *policy), (1, 2), (1, 3), (1, 2))
    write_report(run)
    page = (run / "report.html").read_text()
    assert "devices took part in 13 to 40 of 40 rounds" in page
    assert "mean uplink rate, Mbit/s" in page and "59.5%" in page
    with Image.open(run / "cell.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 50 and (run / "cell.png").stat().st_size < 100_000


def test_a_report_omits_an_unused_cell_and_unknown_devices(tmp_path):
    run = add_devices(make_run(tmp_path / "a", {0: 9, 40: 5}), (1, 2, 3))
    write_report(run)
    assert not (run / "cell.png").exists()
    assert "every device took part in all 40 rounds" in (run / "report.html").read_text()
    (run / "devices.json").unlink()
    write_report(run)
    assert "took part" not in (run / "report.html").read_text()


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
def test_a_damaged_devices_file_is_refused(tmp_path, damage):
    (tmp_path / "devices.json").write_text(json.dumps(damage(DEVICES)))
    with pytest.raises(UserError, match=r"devices.json is damaged"):
        read_device_data(tmp_path)
