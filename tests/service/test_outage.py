"""Redis goes away and comes back; the API is halted and started again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx

from service.launch import free_port
from service.settings import Settings
from service.store import Store
from tests.conftest import running_api, running_redis, wait_until
from tests.service.documents import WORKER, document, progress, started
from tests.service.reports import end_leases


def test_an_absent_redis_is_a_503_and_nothing_is_lost_when_it_is_back(tmp_path: Path) -> None:
    """The API lives on, says what is wrong and when to try again, and goes on with the same runs and attempts."""
    port = free_port()
    with (
        running_api(Settings(redis_url=f"redis://127.0.0.1:{port}", state_dir=tmp_path / "api")) as url,
        httpx.Client(base_url=url, trust_env=False) as http,
    ):
        assert http.get("/readyz").status_code == 503  # started before its Redis
        with running_redis(tmp_path / "redis", port):
            assert http.get("/readyz").status_code == 200
            run = http.post("/runs", json=document()).json()["id"]
            http.post("/workers/w1/claim", json=WORKER.model_dump())
            report = f"/runs/{run}/attempts/1"
            http.post(f"{report}/events", json={"events": [started(), progress(2, 10)]})
            before = http.get(f"/runs/{run}").json()

        for method, path in [("GET", "/readyz"), ("GET", f"/runs/{run}"), ("POST", f"{report}/heartbeat")]:
            answer = http.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
            assert answer.headers["retry-after"] == "1"
            assert "Redis does not answer" in answer.json()["detail"]
        assert http.post("/runs", json=document()).status_code == 503
        assert http.get("/healthz").status_code == 200

        with running_redis(tmp_path / "redis", port):
            assert http.get(f"/runs/{run}").json() == before
            assert http.post(f"{report}/heartbeat").status_code == 200
            assert http.post(f"{report}/events", json={"events": [progress(2, 10), progress(3, 20)]}).json() == {"last_seq": 3}
            assert len(http.get("/runs").json()["runs"]) == 1


def test_the_api_takes_runs_back_from_silent_workers(redis_url: str, tmp_path: Path) -> None:
    """Within about a second of the lease's end, without any request."""
    with (
        running_api(Settings(redis_url=redis_url, state_dir=tmp_path, lease_seconds=60)) as url,
        httpx.Client(base_url=url, trust_env=False) as http,
    ):
        run = http.post("/runs", json=document()).json()["id"]
        http.post("/workers/w1/claim", json=WORKER.model_dump())

        def taken_back() -> bool:
            asyncio.run(silence_workers(redis_url))  # again and again: the API's first look renews all of them
            return bool(http.get(f"/runs/{run}").json()["status"] == "queued")

        wait_until(taken_back, "the run is queued again", seconds=20)
        assert http.get(f"/runs/{run}").json()["reason"].startswith("worker w1 was not heard of for 60 s; attempt 2 ")


def test_an_api_that_was_away_gives_every_lease_a_full_period(redis_url: str, tmp_path: Path) -> None:
    """Nobody could renew while it was away, so a lease that ended meanwhile is not held against the worker."""
    settings = Settings(redis_url=redis_url, state_dir=tmp_path, lease_seconds=4)
    with running_api(settings) as url, httpx.Client(base_url=url, trust_env=False) as http:
        run = http.post("/runs", json=document()).json()["id"]
        http.post("/workers/w1/claim", json=WORKER.model_dump())
    time.sleep(4.5)
    with running_api(settings) as url, httpx.Client(base_url=url, trust_env=False) as http:
        time.sleep(1.5)  # two looks at the leases
        assert http.post(f"/runs/{run}/attempts/1/heartbeat").status_code == 200


async def silence_workers(redis_url: str) -> None:
    """As if no worker had been heard of for too long."""
    async with Store.connect(redis_url, lease_seconds=60) as store:
        await end_leases(store)
