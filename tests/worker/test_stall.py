"""Whether a job still moves: beats on disk, and a clock that the test turns."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.layout import AttemptDir, Beat, write_beat
from service.worker import stall
from service.worker.stall import StallDetector


class Job:
    """Two ranks whose beats the test writes, watched from outside once a second."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(stall.time, "monotonic", lambda: self.now)
        self.directory = AttemptDir(directory)
        (directory / "beats").mkdir()
        self.detector = StallDetector(self.directory, (0, 1), stall_seconds=60.0)

    def beat(self, rank: int, step: int, phase: str = "training", count: int | None = None) -> None:
        descriptor = os.open(self.directory.beat(rank), os.O_WRONLY | os.O_CREAT)
        write_beat(descriptor, Beat(step, phase, step if count is None else count, 0.0))
        os.close(descriptor)

    def both(self, step: int, phase: str = "training", count: int | None = None) -> None:
        self.beat(0, step, phase, count)
        self.beat(1, step, phase, count)

    def seconds_until_stall(self, most: int) -> int | None:
        for second in range(1, most + 1):
            self.now += 1.0
            if self.detector.look():
                return second
        return None


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path, monkeypatch)


def test_ranks_that_make_no_step_for_a_minute_are_stuck(job: Job) -> None:
    """Also where they go on beating."""
    for step in range(1, 20):
        job.both(step)
        assert job.seconds_until_stall(1) is None
    for count in range(50, 100):
        job.both(19, count=count)
        assert job.seconds_until_stall(1) is None
    assert job.seconds_until_stall(30) == 11


def test_one_rank_that_moves_is_enough(job: Job) -> None:
    """The others may wait for it; once it stands as well, all do."""
    job.both(1)
    for step in range(2, 300):
        job.beat(1, step)
        assert job.seconds_until_stall(1) is None


def test_slow_steps_have_twenty_times_their_usual_length(job: Job) -> None:
    """Steps of 30 s: ten minutes."""
    for step in range(1, 8):
        job.both(step)
        assert job.seconds_until_stall(30) is None
    waited = job.seconds_until_stall(700)
    assert waited is not None
    assert waited + 30 == pytest.approx(20 * 30, abs=3)


@pytest.mark.parametrize("phase", ["starting", "evaluating", "exporting"])
def test_other_phases_have_a_quarter_of_an_hour_for_each_piece_of_work(job: Job, phase: str) -> None:
    """They have no steps; a count tells that they live."""
    for count in range(1, 5):
        job.both(40, phase, count)
        assert job.seconds_until_stall(850) is None
    assert job.seconds_until_stall(100) == 52


def test_a_job_that_never_begins_is_stuck_too(job: Job) -> None:
    """No rank has beaten: they do not find each other."""
    assert job.seconds_until_stall(1000) == 901


def test_the_first_step_has_a_quarter_of_an_hour_as_well(job: Job) -> None:
    """Kernels are compiled and connections made; what is usual is not known yet."""
    job.both(0)
    assert job.seconds_until_stall(1000) == 902


def test_one_rank_in_another_phase_gives_all_the_longer_limit(job: Job) -> None:
    """Rank 0 writes the checkpoint while the others wait for it."""
    for step in range(1, 11):
        job.both(step)
        assert job.seconds_until_stall(1) is None
    job.beat(0, 10, "saving")
    assert job.seconds_until_stall(800) is None


def test_time_in_which_the_machine_was_frozen_does_not_count(job: Job) -> None:
    """Worker and ranks slept for an hour, and a collective may take a moment to go on."""
    job.both(10)
    assert job.seconds_until_stall(20) is None
    job.now += 3600.0
    assert job.detector.look() is None
    assert job.seconds_until_stall(30) is None


def test_the_reason_names_phase_step_and_what_was_usual(job: Job) -> None:
    """And the rank that did least, whose stack tells most."""
    for step in range(1, 5):
        job.both(step)
        job.seconds_until_stall(2)
    job.beat(1, 5)
    job.seconds_until_stall(1)
    job.now += 1.0
    for _ in range(59):
        assert job.detector.look() is None
        job.now += 1.0
    found = None
    for _ in range(3):
        found = found or job.detector.look()
        job.now += 1.0
    assert found is not None
    assert found.rank == 0
    assert "in phase training at step 4 (a step takes 2 s)" in found.reason
