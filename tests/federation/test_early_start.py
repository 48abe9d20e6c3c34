"""Local rounds that start before all of their input has arrived."""

from __future__ import annotations

from fedgan_mpi.federation.early_start import EarlyStart, LocalRound


class LoggedRound:
    """Local rounds that log their two parts."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def begin(self, result: str = "loss") -> LocalRound[str]:
        self.log.append("first part")
        yield
        self.log.append("second part")
        return result


def test_start_runs_the_part_before_the_yield():
    local_round, early_start = LoggedRound(), EarlyStart[str]()
    assert not early_start.has_started
    early_start.start(local_round.begin())
    assert early_start.has_started and local_round.log == ["first part"]


def test_finish_runs_the_rest_of_a_started_round():
    local_round, early_start = LoggedRound(), EarlyStart[str]()
    early_start.start(local_round.begin("started"))
    assert early_start.finish(lambda: local_round.begin("new")) == "started"
    assert local_round.log == ["first part", "second part"]
    assert not early_start.has_started


def test_finish_without_start_runs_a_whole_round():
    local_round, early_start = LoggedRound(), EarlyStart[str]()
    assert early_start.finish(local_round.begin) == "loss"
    assert local_round.log == ["first part", "second part"]
    assert not early_start.has_started


def test_finish_runs_a_round_without_a_yield():
    """As a round that is replayed whole as a CUDA graph."""

    def whole() -> LocalRound[str]:
        return "loss"
        yield

    assert EarlyStart[str]().finish(whole) == "loss"


def test_a_discarded_round_never_finishes():
    discarded, following, early_start = LoggedRound(), LoggedRound(), EarlyStart[str]()
    early_start.start(discarded.begin("discarded"))
    early_start.discard()
    assert not early_start.has_started
    assert early_start.finish(lambda: following.begin("following")) == "following"
    assert discarded.log == ["first part"]


def test_discard_without_a_started_round_does_nothing():
    early_start = EarlyStart[str]()
    early_start.discard()
    assert not early_start.has_started
