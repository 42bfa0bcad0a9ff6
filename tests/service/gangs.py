"""A run over several nodes, and who owns slots: for the tests of attempts."""

from __future__ import annotations

from service.runs import Run
from service.store import Store
from tests.service.documents import spec
from tests.service.reports import Node, start


async def gang(store: Store, num_nodes: int = 3) -> tuple[Run, list[Node]]:
    """Held by w0 (the lead), w1, ..."""
    run = await store.submit(spec(nodes=num_nodes), "alice")
    nodes = [Node(store, f"w{i}") for i in range(num_nodes)]
    assert await start(store, run, *nodes) == 1
    return run, nodes


async def owners(store: Store) -> dict[str, list[tuple[str, int]]]:
    """Which attempts own slots, by worker."""
    found = {worker.id: [(held.run_id, held.attempt) for held in worker.holds] for worker in await store.workers()}
    return {worker: held for worker, held in found.items() if held}
