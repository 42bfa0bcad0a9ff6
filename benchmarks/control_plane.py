"""The control plane under load: many runs, many workers, many who look, all at once, beside a bare FastAPI + Redis echo.

    python -m benchmarks.control_plane [--seconds 20] [--workers 1000] [--runs 10000] [--api-processes 1] [--json FILE]

Real Redis (fsync at every write), the real API, simulated workers that speak its protocol over HTTP. Phases:
    alone     submissions as fast as the API takes them; the same to the peer
    together  1,000 workers polling, 100 followers of events, 50 log tails, 300 submissions/s with Idempotency-Key
              and status reads up to 500 requests/s: each route's p50 and p99; the peer at the same rates
Figures of one machine mean nothing by themselves: compare the rows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import httpx

from benchmarks.http_load import Connection, Pool, Times, at_rate
from deploy import redis_server
from service import processes
from service.keys import Keys
from service.launch import free_port
from service.layout import write_whole
from service.runs import Role
from service.spec import parse_spec
from service.store import Store

LEASE_SECONDS = 15.0
SUBMISSIONS, READS = 300.0, 500.0
FOLLOWERS, TAILS = 100, 50
DOCUMENT = {"preset": "demo", "data": {"path": "/data/images"}, "resources": {"ranks_per_node": 2}}


def wait_for_answer(url: str) -> None:
    for _ in range(300):
        try:
            if httpx.get(url, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    sys.exit(f"{url} does not answer")


async def fill(redis_url: str, count: int) -> dict[str, str]:
    """`count` stored runs, and the keys' secrets by role."""
    secrets = {}
    async with Store.connect(redis_url, LEASE_SECONDS, max_queued=10**6) as store:
        for role in (Role.ADMIN, Role.WORKER):
            secrets[str(role)], _ = await Keys(store.redis).create(f"bench-{role}", role)
        spec = parse_spec({**DOCUMENT, "resources": {"ranks_per_node": 32}})  # larger than any worker: they stay queued
        for start in range(0, count, 50):
            await asyncio.gather(*(store.submit(spec, f"owner-{i % 20}") for i in range(start, min(count, start + 50))))
    return secrets


class Worker:
    """Polls, holds what it is offered, reports it started, and finishes it two polls later."""

    def __init__(self, name: str, port: int, key: str, times: Times) -> None:
        self.name, self.times, self.held, self.number = name, times, list[dict[str, Any]](), 0
        self.incarnation = os.urandom(8).hex()
        self.connection = Connection(port, {"Authorization": f"Bearer {key}"})

    async def run(self, until: float) -> None:
        while time.monotonic() < until:
            self.number += 1
            poll = {
                "incarnation": self.incarnation, "host": self.name, "address": "127.0.0.1", "slots": 2, "device": "cpu", "storage": "s",
                "number": self.number, "held": self.held, "wait_seconds": 0 if self.held else LEASE_SECONDS / 4,
            }  # fmt: skip
            route = "worker poll" if self.held else "worker long-poll"
            status, answer = await self.times.timed(route, self.connection, "POST", f"/workers/{self.name}/poll", poll)
            reply = json.loads(answer) if status == 200 else {"offers": []}
            for held in self.held:
                await self.work(held)
            self.held = [
                {"run_id": offer["run_id"], "attempt": offer["attempt"], "master_port": 1 if offer["node_rank"] == 0 else None}
                for offer in reply["offers"]
            ]
            if not self.held:
                await asyncio.sleep(0.2)

    async def work(self, held: dict[str, Any]) -> None:
        path = f"/runs/{held['run_id']}/attempts/{held['attempt']}"
        started = {"kind": "started", "num_images": 100, "num_steps": 50, "start_step": 0, "world_size": 2, "device": "cpu"}
        numbers = {"epoch": 0.1, "num_epochs": 5, "loss": 4.5, "learning_rate": 0.1}
        speed = {"images_per_second": 99.5, "data_wait": 0.25, "eta_seconds": 12.0}
        steps = [{"kind": "progress", "step": step, "num_steps": 50, **numbers, **speed} for step in range(1, 11)]
        events = [{**event, "seq": seq, "time": time.time()} for seq, event in enumerate([started, *steps], 1)]
        await self.times.timed("worker events", self.connection, "POST", f"{path}/events", {"events": events})
        report = {"worker": self.name, "outcome": "finished", "exit_code": 0, "reason": "done"}
        await self.times.timed("worker exit", self.connection, "POST", f"{path}/exit", report)


async def follow(connection: Connection, path: str, headers: dict[str, str], counts: dict[str, int], name: str) -> None:
    try:
        async for piece in connection.stream(path, headers):
            counts[name] += len(piece)
    except (OSError, asyncio.IncompleteReadError, ValueError, AssertionError) as error:
        counts[f"{name} broken: {type(error).__name__}"] += 1


async def together(port: int, keys: dict[str, str], seconds: float, num_workers: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    times, headers = Times(), {"Authorization": f"Bearer {keys['admin']}"}
    until = time.monotonic() + seconds + 5
    workers = [asyncio.create_task(Worker(f"w{i}", port, keys["worker"], times).run(until)) for i in range(num_workers)]
    pool, seen, counts = Pool(port, headers), list[str](), dict.fromkeys(("followers", "tails"), 0)
    setup = Times()
    for i in range(FOLLOWERS):
        status, answer = await pool.timed(setup, "setup", "POST", "/runs", DOCUMENT, Idempotency_Key=f"first-{i}")
        assert status == 201, answer
        seen.append(json.loads(answer)["id"])
    followers = [
        asyncio.create_task(follow(Connection(port, headers), f"/runs/{run}/events", {"Accept": "text/event-stream"}, counts, "followers"))
        for run in seen
    ]
    followers += [
        asyncio.create_task(follow(Connection(port, headers), f"/runs/{run}/logs?follow=true", {}, counts, "tails")) for run in seen[:TAILS]
    ]
    await asyncio.sleep(5)
    begun = time.monotonic()
    for route in list(times.seconds):
        times.seconds[route].clear()

    async def submit(i: int) -> None:
        status, answer = await pool.timed(times, "POST /runs", "POST", "/runs", DOCUMENT, Idempotency_Key=f"load-{i}")
        if status == 201:
            seen.append(json.loads(answer)["id"])

    async def read(i: int) -> None:
        await pool.timed(times, "GET /runs/RUN", "GET", f"/runs/{seen[i * 7919 % len(seen)]}")

    async def listing(i: int) -> None:
        await pool.timed(times, "GET /runs", "GET", "/runs?limit=20")

    await asyncio.gather(
        at_rate(SUBMISSIONS, begun + seconds, submit),
        at_rate(READS - SUBMISSIONS, begun + seconds, read),
        at_rate(2, begun + seconds, listing),
    )
    duration = time.monotonic() - begun
    for task in (*workers, *followers):
        task.cancel()
    await asyncio.gather(*workers, *followers, return_exceptions=True)
    return times.rows(duration), {**counts, **times.wrong}


async def flood(port: int, headers: dict[str, str], seconds: float, clients: int = 32) -> float:
    """Submissions per second of a closed loop."""
    times, until, begun = Times(), time.monotonic() + seconds, time.monotonic()

    async def client(number: int) -> None:
        connection, i = Connection(port, headers), 0
        while time.monotonic() < until:
            await times.timed("POST", connection, "POST", "/runs", DOCUMENT, Idempotency_Key=f"flood-{port}-{number}-{i}")
            i += 1

    await asyncio.gather(*(client(number) for number in range(clients)))
    assert not times.wrong, times.wrong
    return len(times.seconds["POST"]) / (time.monotonic() - begun)


async def peer_together(port: int, seconds: float) -> list[dict[str, Any]]:
    times, pool, begun, seen = Times(), Pool(port, {}), time.monotonic(), list[str]()

    async def submit(i: int) -> None:
        _, answer = await pool.timed(times, "peer POST /runs", "POST", "/runs", DOCUMENT)
        seen.append(json.loads(answer)["id"])

    async def read(i: int) -> None:
        if seen:
            await pool.timed(times, "peer GET /runs/RUN", "GET", f"/runs/{seen[i % len(seen)]}")

    loads: list[Awaitable[None]] = [at_rate(SUBMISSIONS, begun + seconds, submit), at_rate(READS - SUBMISSIONS, begun + seconds, read)]
    await asyncio.gather(*loads)
    return times.rows(time.monotonic() - begun)


def resident(pid: int) -> float:
    """MiB, with children."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="millionway-load-"))
    redis_port, api_port, peer_port = free_port(), free_port(), free_port()
    redis_url = f"redis://127.0.0.1:{redis_port}"
    children = [redis_server.start(directory / "redis", redis_port)]
    try:
        time.sleep(0.5)
        keys = asyncio.run(fill(f"{redis_url}/0", arguments.runs))
        environment = {
            **os.environ,
            "MILLIONWAY_REDIS_URL": f"{redis_url}/0",
            "MILLIONWAY_STATE_DIR": str(directory / "api"),
            "MILLIONWAY_MAX_QUEUED": "1000000",
            "MILLIONWAY_RATE_LIMIT": "100000",
        }
        command = [sys.executable, "-m", "api", "--port", str(api_port)]
        api = processes.spawn(command, environment=environment, log=directory / "api.log")
        peer = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "benchmarks.peer_echo:app", "--port", str(peer_port), "--log-level", "error"],
            env={**os.environ, "PEER_REDIS_URL": f"{redis_url}/1"},
        )
        children += [api, peer]
        wait_for_answer(f"http://127.0.0.1:{api_port}/readyz")
        wait_for_answer(f"http://127.0.0.1:{peer_port}/runs/none")
        headers = {"Authorization": f"Bearer {keys['admin']}"}
        alone = {
            "ours": asyncio.run(flood(api_port, headers, arguments.seconds / 2)),
            "peer": asyncio.run(flood(peer_port, {}, arguments.seconds / 2)),
        }
        rows, counts = asyncio.run(together(api_port, keys, arguments.seconds, arguments.workers))
        rows += asyncio.run(peer_together(peer_port, arguments.seconds))
        memory = {"api": resident(api.pid), "peer": resident(peer.pid), "redis": resident(children[0].pid)}
    finally:
        for child in reversed(children):
            processes.end(child, 10.0)
    print(f"submissions alone: {alone['ours']:.0f}/s, peer {alone['peer']:.0f}/s")
    print(f"{'route':24}{'per second':>12}{'p50 ms':>10}{'p99 ms':>10}")
    for row in rows:
        print(f"{row['route']:24}{row['per_second']:12.1f}{row['p50_ms']:10.1f}{row['p99_ms']:10.1f}")
    print(f"bytes streamed, and what went wrong: {counts}")
    print("resident MiB: " + ", ".join(f"{name} {size:.0f}" for name, size in memory.items()))
    if arguments.json:
        write_whole(arguments.json, json.dumps({"alone": alone, "together": rows, "counts": counts, "memory_mib": memory}, indent=1))


if __name__ == "__main__":
    main()
