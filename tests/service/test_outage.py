"""Redis goes away, or is killed, and comes back; the API is halted and started again."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis

from deploy import redis_server
from service.errors import StoreUnavailable
from service.launch import free_port
from service.lifecycle import Status
from service.settings import Settings
from service.store import Store
from tests.conftest import ADMIN_KEY, bearer, running_api, running_redis, wait_until, with_first_keys
from tests.service.documents import document, spec
from tests.service.reading import Reading
from tests.service.reports import Node, end_leases, place, silence


@contextlib.contextmanager
def reading(url: str, directory: Path) -> Iterator[Reading]:
    api = Reading(url, ADMIN_KEY, directory)
    with api.client, api.http:
        yield api


def test_an_absent_redis_is_a_503_and_nothing_is_lost_when_it_is_back(tmp_path: Path) -> None:
    """The API lives on, says what is wrong and when to try again, and goes on with the same runs and attempts."""
    port = free_port()
    redis_url = f"redis://127.0.0.1:{port}"
    with running_api(Settings(redis_url=redis_url, state_dir=tmp_path / "api")) as url, reading(url, tmp_path) as api:
        assert api.http.get("/readyz").status_code == 503  # started before its Redis
        with running_redis(tmp_path / "redis", port):
            with_first_keys(redis_url)
            wait_until(lambda: api.http.get("/readyz").status_code == 200, "the API is ready")
            run = api.started()
            api.report(run, api.progress(10))
            before = api.client.run(run.id)

        for method, path in [("GET", "/readyz"), ("GET", f"/runs/{run.id}"), ("POST", f"/runs/{run.id}/cancel")]:
            answer = api.http.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
            assert answer.headers["retry-after"] == "1"
            assert "Redis does not answer" in answer.json()["detail"]
        assert api.http.post("/runs", json=document()).status_code == 503
        assert api.http.get("/healthz").status_code == 200

        with running_redis(tmp_path / "redis", port):
            wait_until(lambda: api.http.get("/readyz").status_code == 200, "the API is ready")
            assert api.client.run(run.id) == before
            assert api.poll() == []
            api.report(run, api.progress(20))
            assert len(api.client.runs().runs) == 1
            api.end(run)
            assert api.client.run(run.id).status == Status.SUCCEEDED


def test_the_api_takes_runs_back_from_silent_workers(redis_url: str, tmp_path: Path) -> None:
    """Within about a second of the lease's end, without any request; and gives them to others."""
    with_first_keys(redis_url)
    with running_api(Settings(redis_url=redis_url, state_dir=tmp_path, lease_seconds=60)) as url, reading(url, tmp_path) as api:
        run = api.started()

        def taken_back() -> bool:
            asyncio.run(silence_workers(redis_url))
            return api.client.run(run.id).status == Status.QUEUED

        wait_until(taken_back, "the run is queued again", seconds=20)
        assert api.client.run(run.id).reason.startswith("worker w1 was not heard of for 60 s; attempt 2 ")


def test_an_api_that_was_away_gives_every_lease_a_full_period(redis_url: str, tmp_path: Path) -> None:
    """Nobody could renew while it was away, so a lease that ended meanwhile is not held against the worker."""
    settings = Settings(redis_url=redis_url, state_dir=tmp_path, lease_seconds=2)
    with_first_keys(redis_url)
    with running_api(settings) as url, reading(url, tmp_path) as api:
        run = api.started()
    time.sleep(2.2)
    with running_api(settings) as url, httpx.Client(base_url=url, headers=bearer(ADMIN_KEY), trust_env=False) as http:
        time.sleep(1)  # several looks at the leases
        assert http.get(f"/runs/{run.id}").json()["status"] == "running"
        wait_until(lambda: http.get(f"/runs/{run.id}").json()["status"] == "queued", "the silent worker is missed after all")


async def silence_workers(redis_url: str) -> None:
    async with Store.connect(redis_url, lease_seconds=60) as store:
        await end_leases(store)


class KilledRedis:
    """A server that is killed while clients write, and started again on the same files."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, free_port()
        self.url = f"redis://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.server: subprocess.Popen[bytes] = redis_server.start(self.directory, self.port)
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(StoreUnavailable, redis.exceptions.RedisError):
                    async with Store.connect(self.url, lease_seconds=60) as store:
                        await store.ping()
                        return
                await asyncio.sleep(0.02)

    def kill(self) -> None:
        self.server.kill()
        self.server.wait(10)


@pytest.mark.anyio
async def test_what_redis_acknowledged_survives_its_being_killed(tmp_path: Path) -> None:
    """Thrice, under the load of ten clients: every submission and every placement that was answered is there, each once, and a
    submission that was not answered can be sent again with its key."""
    server = KilledRedis(tmp_path)
    submitted: dict[str, str] = {}
    unanswered: list[str] = []
    placed: dict[str, str] = {}
    try:
        for _ in range(3):
            await server.start()
            async with Store.connect(server.url, lease_seconds=60) as store:
                clients = [asyncio.create_task(write_until_killed(store, submitted, unanswered, placed)) for _ in range(10)]
                await asyncio.sleep(0.7)
                server.kill()
                await asyncio.gather(*clients)
        await server.start()
        async with Store.connect(server.url, lease_seconds=60) as store:
            assert len(submitted) > 100
            assert len(placed) > 20
            for key in unanswered:
                submitted[key] = (await store.submit(spec(), "alice", key)).id
            for key, run_id in submitted.items():
                assert (await store.submit(spec(), "alice", key)).id == run_id
            found, cursor = [], None
            while True:
                page = await store.list_runs(cursor=cursor, limit=500)
                found += [run.id for run in page.runs]
                if not page.has_more:
                    break
                cursor = int(page.next_cursor or "")
            assert sorted(found) == sorted(submitted.values())
            for run_id, worker in placed.items():
                assert (await store.attempts(run_id))[0].members[0].worker == worker
            holders = {held.run_id: worker.id for worker in await store.workers() for held in worker.holds}
            assert {run_id: holders.get(run_id) for run_id in placed} == placed
            lost = await silence(store)
            while more := (await store.expire())[0]:
                lost += more
            assert sorted(lost) == sorted(holders)  # each of them was under a lease, none is forgotten
    finally:
        server.kill()


async def write_until_killed(store: Store, submitted: dict[str, str], unanswered: list[str], placed: dict[str, str]) -> None:
    while True:
        key = secrets.token_hex(8)
        try:
            run = await store.submit(spec(), "alice", key)
        except StoreUnavailable:
            unanswered.append(key)
            return
        submitted[key] = run.id
        with contextlib.suppress(StoreUnavailable):
            node = Node(store, f"w{key}")
            await node.poll()
            if await place(store, run, node):
                placed[run.id] = node.name
