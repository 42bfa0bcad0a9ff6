"""Why a queued run waits, in words. Pure; computed when the run is read."""

from __future__ import annotations

from collections.abc import Sequence

from service.runs import Worker
from service.sections import Resources


def wait_reason(resources: Resources, workers: Sequence[Worker]) -> str:
    """The first thing that must change before a worker takes a run with these resources."""
    connected = [worker for worker in workers if worker.alive]
    if not connected:
        return "no worker is connected: start one with `millionway up`"
    if resources.nodes > 1:
        return f"needs {resources.nodes} nodes at once, and this release places a run on one: submit it with resources.nodes 1"
    if resources.device == "cuda":
        if not any(worker.device.startswith("cuda") for worker in connected):
            return "needs a worker with a GPU, and none is connected: start one there, or submit with resources.device auto"
        connected = [worker for worker in connected if worker.device.startswith("cuda")]
    largest = max(worker.slots for worker in connected)
    if resources.ranks_per_node > largest:
        return f"needs {resources.ranks_per_node} ranks on one node; the largest connected worker has {_count(largest, 'slot')}"
    fitting = [worker for worker in connected if worker.slots >= resources.ranks_per_node]
    busy = sum(worker.run is not None for worker in fitting)
    if busy < len(fitting):
        return f"{_count(len(fitting) - busy, 'worker')} free: about to be claimed"
    return f"waiting for a worker: {_count(busy, 'worker')} {'is' if busy == 1 else 'are'} busy"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
