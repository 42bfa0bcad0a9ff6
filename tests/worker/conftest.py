"""The real API as a process, and real worker processes whose jobs are fake."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import processes
from service.client import ApiClient
from service.errors import ApiProblem, ApiUnavailable
from service.launch import free_port
from service.layout import RunDir
from service.lifecycle import Status
from service.protocol import Held, Offer, Poll, PollReply
from service.runs import Run, Transition
from service.spec import RunSpec, parse_spec
from tests.conftest import wait_until

LEASE_SECONDS = 1.5


class Service:
    """The API as a process on a fixed port, so that it can go away and come back, and workers that share a runs directory."""

    def __init__(self, redis_url: str, directory: Path) -> None:
        self.redis_url, self.directory, self.api_port = redis_url, directory, free_port()
        self.runs_dir, self.keys_dir = directory / "runs", directory / "keys"
        self.lease_seconds = LEASE_SECONDS
        self.children: list[subprocess.Popen[bytes]] = []
        self.url = f"http://127.0.0.1:{self.api_port}"

    def start(self) -> None:
        self.start_api()
        self.admin_key, self.worker_key = ((self.keys_dir / f"{role}.key").read_text().strip() for role in ("admin", "worker"))
        self.client = ApiClient(self.url, key=self.admin_key)
        self.http = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {self.admin_key}"}, trust_env=False, timeout=10)

    def start_api(self) -> None:
        environment = {
            **os.environ,
            "MILLIONWAY_REDIS_URL": self.redis_url,
            "MILLIONWAY_STATE_DIR": str(self.directory / "api"),
            "MILLIONWAY_KEYS_DIR": str(self.keys_dir),
            "MILLIONWAY_LEASE_SECONDS": str(self.lease_seconds),
        }
        command = [sys.executable, "-m", "api", "--port", str(self.api_port)]
        self.api = processes.spawn(command, environment=environment, log=self.directory / "api.log")
        self.children.append(self.api)
        wait_until(self._ready, "the API answers", seconds=30)

    def kill_api(self) -> None:
        self.api.kill()
        self.api.wait()

    def start_worker(self, name: str = "w1", slots: int = 1, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.worker.fake_worker", "--api", self.url, "--runs-dir", str(self.runs_dir)]
        command += [
            "--name",
            name,
            "--slots",
            str(slots),
            "--grace-seconds",
            "1",
            "--key-file",
            str(self.keys_dir / "worker.key"),
            *options,
        ]
        child = processes.spawn(command, environment=os.environ, log=self.worker_log(name))
        self.children.append(child)
        return child

    def worker_log(self, name: str = "w1") -> Path:
        return self.directory / f"{name}.log"

    def submit(self, name: str, steps: int = 10_000, **resources: int) -> Run:
        return self.client.submit(fake_spec(name, steps, **resources))

    def request(self, run: Run, what: str) -> None:
        """cancel, kill, pause or resume."""
        self.http.post(f"/runs/{run.id}/{what}").raise_for_status()

    def wait(self, run: Run, *statuses: Status, seconds: float = 20.0) -> Run:
        wait_until(lambda: self.client.run(run.id).status in statuses, f"run {run.name} is {'/'.join(statuses)}", seconds=seconds)
        return self.client.run(run.id)

    def entry(self, run: Run, event: str, seconds: float = 10.0) -> Transition:
        """The first of the run's history that says so."""
        found: list[Transition] = []

        def look() -> bool:
            found.extend(entry for entry in self.client.history(run.id) if entry.event == event)
            return bool(found)

        wait_until(look, f"run {run.name} is {event}", seconds=seconds)
        return found[0]

    def get(self, path: str, **params: Any) -> Any:
        return self.http.get(path, params=params).raise_for_status().json()

    def events(self, run_id: str, kind: str) -> list[dict[str, Any]]:
        """What the events of a kind hold, oldest first."""
        found, page = [], {"has_more": True, "next_cursor": None}
        while page["has_more"]:
            cursor = {"after": page["next_cursor"]} if page["next_cursor"] else {}
            page = self.get(f"/runs/{run_id}/events", limit=500, **cursor)
            found += [event["data"] for event in page["events"] if event["kind"] == kind]
        return found

    def steps(self, run_id: str) -> list[int]:
        """Of the progress that the run's events hold."""
        return [event["step"] for event in self.events(run_id, "progress")]

    def log(self, run: Run, name: str = "rank-0.log", attempt: int = 1) -> bytes:
        return self.client.log(run.id, attempt=attempt, name=name)[0]

    def attempt_file(self, run: Run, attempt: int, name: str) -> Path:
        return RunDir(self.runs_dir / run.id).attempt(attempt).path / name

    def _ready(self) -> bool:
        try:
            with ApiClient(self.url, retries=0) as client:
                client.ready()
        except (ApiUnavailable, ApiProblem):
            return False
        return (self.keys_dir / "worker.key").exists()

    def close(self) -> None:
        for child in reversed(self.children):
            processes.end(child, 5.0)


def fake_spec(name: str, steps: int, **resources: int) -> RunSpec:
    """The run's name says what the fake job does."""
    return parse_spec({"name": name, "data": {"path": "/unused"}, "schedule": {"steps": steps}, "resources": resources})


class FakeWorker:
    """A worker without a process: it polls when the test says so."""

    def __init__(self, service: Service, name: str = "another", **fields: Any) -> None:
        self._service, self._name, self._fields, self._number = service, name, fields, 0

    def poll(self, **fields: Any) -> PollReply:
        self._number += 1
        return self._service.client.poll(self._name, poll_of(self._number, **{**self._fields, **fields}))

    def take(self) -> Held:
        """The first attempt that is offered, held."""
        offers: list[Offer] = []
        wait_until(lambda: offers.extend(self.poll().offers) or offers, "an attempt is offered")
        held = Held(run_id=offers[0].run_id, attempt=offers[0].attempt, master_port=29500)
        self.poll(held=[held])
        return held


def poll_of(number: int, **fields: Any) -> Poll:
    """Of a worker that is no process."""
    about = {"incarnation": "0123456789abcdef", "host": "elsewhere", "address": "127.0.0.1", "slots": 1, "device": "cpu", "storage": "s"}
    return Poll(number=number, **{**about, **fields})


@pytest.fixture
def service(redis_url: str, tmp_path: Path) -> Iterator[Service]:
    service = Service(redis_url, tmp_path)
    try:
        service.start()
        with service.client, service.http:
            yield service
    finally:
        service.close()
