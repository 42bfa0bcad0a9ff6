"""Forks and their parents: where the child may run, and when the parent's worker learns what it must keep."""

from __future__ import annotations

import threading
import time

import pytest

from service.runs import Parent
from service.scheduling.decide import decide
from service.store import Store
from tests.service.documents import checkpointed, spec, started
from tests.service.reading import Reading
from tests.service.reports import Node, send, start


@pytest.mark.anyio
async def test_a_fork_starts_where_its_parents_checkpoint_is(store: Store) -> None:
    """Not on a free worker with another file system, where there is nothing to start from."""
    parent = await store.submit(spec(), "alice")
    node, elsewhere = Node(store, "w2", storage="disk-2"), Node(store, "w1", storage="disk-1")
    await start(store, parent, node)
    await send(store, parent, 1, started(), checkpointed(2, 10))
    child = await store.submit(spec(), "alice", parent=Parent(run_id=parent.id, step=10))
    await elsewhere.poll()
    cluster = await store.snapshot()
    assert cluster is not None
    assert [queued.storage for queued in cluster.queued] == ["disk-2"]
    assert decide(cluster).places == ()
    await node.exit(parent, 1, "finished")
    cluster = await store.snapshot()
    assert cluster is not None
    assert [(place.run_id, list(place.slots)) for place in decide(cluster).places] == [(child.id, ["w2"])]


def test_the_parents_worker_hears_of_a_fork_at_once(api: Reading) -> None:
    """Its poll does not wait on: else the job might remove the checkpoint meanwhile. What it knows is no news."""
    parent = api.started()
    api.report(parent, api.checkpointed(10))
    answers: list[tuple[float, list[int]]] = []

    def wait_for_news() -> None:
        begun = time.monotonic()
        pins = api.wait_for_news(seconds=5.0)
        answers.append((time.monotonic() - begun, pins))

    for _ in range(2):
        waiting = threading.Thread(target=wait_for_news)
        waiting.start()
        time.sleep(0.5)
        api.http.post(f"/runs/{parent.id}/fork", json={"spec": {"schedule": {"epochs": 200}}}).raise_for_status()
        waiting.join(10)
    (first, pins), (second, same) = answers
    assert (pins, same) == ([10], [10])
    assert first < 2.0
    assert second > 4.0
