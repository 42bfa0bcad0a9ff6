"""A job over two nodes: two of PyTorch's launchers, here on one machine."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from service import launch
from service.events import ExitCode
from tests.distributed.job import Job, differing, spec_of, weights
from tests.images import noise_folder
from trainer.process import COLLECTIVE_TIMEOUT

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_folder(tmp_path_factory.mktemp("data") / "images", 60)


def rank_codes(job: Job) -> list[str]:
    """What the launchers say that their first failed rank exited with."""
    return re.findall(r"failed \(exitcode: (-?\d+)\)", "".join(log.read_text() for log in job.attempt.path.glob("launcher-*.log")))


def test_two_nodes_of_one_rank_give_the_bits_of_one_node_of_two(images: Path, tmp_path: Path) -> None:
    """Where ranks live changes neither the checkpoint nor the export; both launchers end with 0."""
    spec = spec_of(images)
    one = Job(spec, tmp_path / "one")
    assert one.wait() == 0, one.logs()
    two = Job(spec, tmp_path / "two", nodes=2, ranks_per_node=1)
    assert two.wait() == 0, two.logs()
    assert [launcher.returncode for launcher in two.launchers] == [0, 0]
    assert differing(weights(tmp_path / "two"), weights(tmp_path / "one")) == []


@pytest.mark.parametrize("by", ["file", "signal"])
def test_a_stop_on_one_node_stops_all_ranks_at_one_step(by: str, images: Path, tmp_path: Path) -> None:
    """The stop file, or SIGTERM to one node's launcher: one checkpoint, and every rank ends with 75."""
    job = Job(spec_of(images, schedule={"steps": 100_000}), tmp_path / "run", nodes=2, ranks_per_node=1)
    job.until_step(3)
    if by == "file":
        job.attempt.stop.touch()
    else:
        os.killpg(job.launchers[1].pid, signal.SIGTERM)
    job.wait(30)
    # A launcher that was itself told to end does not say what its ranks exited with.
    assert set(rank_codes(job)) == {str(ExitCode.STOPPED)}, job.logs()
    assert len(rank_codes(job)) == (2 if by == "file" else 1)
    (checkpointed,) = job.events("checkpointed")[-1:]
    assert checkpointed["step"] == job.events("progress")[-1]["step"]
    assert job.events("failed") == []


def test_a_node_that_is_killed_does_not_leave_the_other_waiting(images: Path, tmp_path: Path) -> None:
    """SIGKILL to a launcher takes its rank along, and the other node ends by itself, long before its collective's timeout."""
    for victim in (0, 1):
        job = Job(spec_of(images, schedule={"steps": 100_000}), tmp_path / str(victim), nodes=2, ranks_per_node=1)
        job.until_step(3)
        os.kill(job.launchers[victim].pid, signal.SIGKILL)
        begun = time.monotonic()
        other = job.launchers[1 - victim].wait(60)
        assert other not in (0, None), job.logs()
        assert time.monotonic() - begun < 45 < COLLECTIVE_TIMEOUT.total_seconds()
        job.wait()


@pytest.mark.parametrize("missing", [0, 1])
def test_a_node_that_never_comes_is_waited_for_as_long_as_we_say(
    missing: int, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is the one that all meet at, or another: the launcher that came gives up by itself."""
    monkeypatch.setattr(launch, "MEET_SECONDS", 3)
    begun = time.monotonic()
    job = Job(spec_of(images), tmp_path / "run", nodes=2, ranks_per_node=1, missing_nodes=(missing,))
    assert job.wait(60) != 0
    assert time.monotonic() - begun < 30
    assert "timed out" in job.logs().lower() or "timeout" in job.logs().lower()
    assert not job.attempt.events.exists()
