"""Whole jobs whose participants are chosen by channel and by update, under the wireless clock."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from whole_jobs import SMALL, copy_without_last_checkpoint, generator, lines, run

FLAGS = [
    "--participation.fraction=0.4",
    "--data.devices=5",
    "--wireless.on=true",
    "--checkpoint.every=3",
    "--link.average=gather",
    *SMALL,
]


def exact(run_directory: Path) -> list[dict]:
    """Lines without measured seconds."""
    return [
        {key: value for key, value in line.items() if not key.startswith("seconds")}
        for line in lines(run_directory)
    ]


@pytest.mark.parametrize(
    ("policy", "algorithm"),
    [
        ("importance", "ren"),
        ("importance", "fedgan"),
        ("proportional_fair", "ren"),
        ("best_channel", "mdgan"),
    ],
)
def test_a_run_resumes_bitwise_on_other_ranks(tmp_path, policy, algorithm):
    """Norms of updates and what devices have had of the channel come back; so do participants, and
    wireless seconds."""
    flags = [f"--participation.policy={policy}", f"--algorithm.name={algorithm}", *FLAGS]
    done = run(4, "--run.name=a", "--training.rounds=6", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "devices took part in" in done.stdout and "(Jain); classes seen" in done.stdout
    whole, cut = tmp_path / "runs" / "a", tmp_path / "runs" / "b"
    copy_without_last_checkpoint(whole, cut)
    done = run(3, "--resume", "runs/b", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rounds = [line for line in exact(whole) if "participants" in line]
    assert [line for line in exact(cut) if "participants" in line] == rounds
    assert all(line["wireless_seconds"] > 0 for line in rounds)
    assert len({tuple(line["participants"]) for line in rounds}) > 1
    assert generator(whole) == generator(cut)
    assert (whole / "cell.png").exists()
    checkpoint = json.loads(
        (whole / "checkpoints" / "round_000003" / "checkpoint.json").read_text()
    )
    assert ("update_norms" in checkpoint["progress"]) == (policy == "importance")

    checkpoint["progress"]["update_norms"] = [1.0, -2.0, 0.0, 0.0, 0.0]
    shutil.rmtree(cut / "checkpoints" / "round_000006")
    (cut / "checkpoints" / "round_000003" / "checkpoint.json").write_text(json.dumps(checkpoint))
    done = run(3, "--resume", "runs/b", cwd=tmp_path)
    assert done.returncode == 1 and "checkpoint.json is damaged" in done.stderr


def test_measured_seconds_can_be_the_clocks(tmp_path):
    flags = ["--wireless.compute=measured", "--wireless.bandwidth_hz=1e15", *FLAGS[1:]]
    done = run(3, "--run.name=a", "--training.rounds=3", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for line in lines(tmp_path / "runs" / "a"):
        if "participants" in line:
            # Nearly nothing is left of the radio; the devices of a rank work one after the other.
            computed = line["wireless_seconds"] - line["seconds_server"]
            assert line["seconds_local"] / 3 < computed < line["seconds_local"] + 0.01


def test_a_list_of_rates_that_fits_no_devices_is_refused(tmp_path):
    flags = ["--wireless.device_macs_per_second=[1e9,2e9]", *FLAGS[1:]]
    done = run(3, *flags, cwd=tmp_path)
    assert done.returncode == 1
    assert "wireless.device_macs_per_second has 2 numbers, but must have one" in done.stderr
    assert "Traceback" not in done.stderr
