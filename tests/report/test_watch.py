"""The output of `watch`, for a run that is still writing."""

from __future__ import annotations

from made_up_runs import make_run

from fedgan_mpi.report.watch import describe, sparkline


def test_watch_ignores_a_line_that_is_being_written(tmp_path):
    run = make_run(tmp_path / "s0", {0: 100, 20: 30, 40: 10})
    path = run / "stats.jsonl"
    path.write_text(path.read_text() + '{"round": 41, "d_lo')
    status, losses, scores, best, grid = describe(run, 60, finished=False)
    assert status.endswith("s0: round 40 of 60, 40 s remaining")
    assert losses.startswith("d_loss  ▁") and losses.endswith("█  1.400")
    assert scores == "score   █▃▁  10"
    assert "best 10 after round 40, floor (held-out real images) 3" in best
    assert grid.endswith("round_000040.png")
    path.unlink()
    assert describe(run, 60, finished=False)[0].endswith("round 0 of 60")


def test_sparklines_show_the_means_of_equal_parts():
    assert sparkline([1.0]) == "▁" and sparkline([5, 5]) == "▁▁"
    assert sparkline([0, 7, 3.4]) == "▁█▄"
    long = sparkline([0.0] * 480 + [1.0] * 480)
    assert long == "▁" * 24 + "█" * 24
