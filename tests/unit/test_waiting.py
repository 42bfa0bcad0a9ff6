"""Why a queued run waits, in words."""

from __future__ import annotations

import pytest

from service.runs import Worker
from service.sections import Resources
from service.waiting import wait_reason


def worker(slots: int = 2, device: str = "cpu", run: str | None = None, alive: bool = True) -> Worker:
    return Worker(id="w", host="h", slots=slots, device=device, run=run, last_seen=0, alive=alive)


CASES = [
    ({}, [], "no worker is connected: start one with `millionway up`"),
    ({}, [worker(alive=False)], "no worker is connected: start one with `millionway up`"),
    ({}, [worker(run="a")], "waiting for a worker: 1 worker is busy"),
    ({}, [worker(run="a"), worker(run="b")], "waiting for a worker: 2 workers are busy"),
    ({}, [worker(run="a"), worker()], "1 worker free: about to be claimed"),
    ({"ranks_per_node": 8}, [worker(), worker(slots=1)], "needs 8 ranks on one node; the largest connected worker has 2 slots"),
    ({"ranks_per_node": 2}, [worker(slots=1)], "needs 2 ranks on one node; the largest connected worker has 1 slot"),
    ({"ranks_per_node": 4}, [worker(slots=8, run="a"), worker(slots=2)], "waiting for a worker: 1 worker is busy"),
    ({"device": "cuda"}, [worker()], "needs a worker with a GPU, and none is connected"),
    ({"device": "cuda", "ranks_per_node": 2}, [worker(slots=8), worker(1, "cuda V100")], "the largest connected worker has 1 slot"),
    ({"device": "cpu"}, [worker(device="cuda V100", run="a")], "waiting for a worker: 1 worker is busy"),
    ({"nodes": 2}, [worker()], "needs 2 nodes at once"),
]


@pytest.mark.parametrize(("resources", "workers", "reason"), CASES)
def test_a_queued_run_says_what_must_change_first(resources: dict[str, object], workers: list[Worker], reason: str) -> None:
    """Nobody there, none large enough, none with a GPU, all busy."""
    assert reason in wait_reason(Resources.model_validate(resources), workers)
