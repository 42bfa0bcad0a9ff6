"""The real API as a process, and real worker processes whose jobs are fake."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import processes
from service.client import ApiClient
from service.errors import ApiProblem, ApiUnavailable
from service.launch import free_port
from service.lifecycle import Status
from service.runs import Run
from service.spec import RunSpec, parse_spec
from tests.conftest import wait_until

LEASE_SECONDS = 1.5


class Service:
    """The API as a process on a fixed port, so that it can go away and come back, and workers."""

    def __init__(self, redis_url: str, directory: Path) -> None:
        self.redis_url, self.directory, self.api_port = redis_url, directory, free_port()
        self.children: list[subprocess.Popen[bytes]] = []
        self.url = f"http://127.0.0.1:{self.api_port}"
        self.client = ApiClient(self.url)
        self.start_api()

    def start_api(self) -> None:
        environment = {
            **os.environ,
            "MILLIONWAY_REDIS_URL": self.redis_url,
            "MILLIONWAY_STATE_DIR": str(self.directory / "api"),
            "MILLIONWAY_LEASE_SECONDS": str(LEASE_SECONDS),
        }
        command = [sys.executable, "-m", "api", "--port", str(self.api_port)]
        self.api = processes.spawn(command, environment=environment, log=self.directory / "api.log")
        self.children.append(self.api)
        wait_until(self._ready, "the API answers", seconds=30)

    def kill_api(self) -> None:
        self.api.kill()
        self.api.wait()

    def start_worker(self, name: str = "w1", slots: int = 1) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.worker.fake_worker", "--api", self.url, "--runs-dir", str(self.directory / "runs")]
        command += ["--name", name, "--slots", str(slots), "--grace-seconds", "1"]
        child = processes.spawn(command, environment=os.environ, log=self.directory / f"{name}.log")
        self.children.append(child)
        return child

    def submit(self, name: str, steps: int = 10_000) -> Run:
        return self.client.submit(fake_spec(name, steps))

    def wait(self, run: Run, *statuses: Status, seconds: float = 20.0) -> Run:
        wait_until(lambda: self.client.run(run.id).status in statuses, f"run {run.name} is {'/'.join(statuses)}", seconds=seconds)
        return self.client.run(run.id)

    def attempt_file(self, run: Run, attempt: int, name: str) -> Path:
        return self.directory / "runs" / run.id / "attempts" / f"{attempt:04d}" / name

    def _ready(self) -> bool:
        try:
            self.client.ready()
        except (ApiUnavailable, ApiProblem):
            return False
        return True

    def close(self) -> None:
        for child in reversed(self.children):
            processes.end(child, 5.0)


def fake_spec(name: str, steps: int) -> RunSpec:
    """The run's name says what the fake job does."""
    return parse_spec({"name": name, "data": {"path": "/unused"}, "schedule": {"steps": steps}})


@pytest.fixture
def service(redis_url: str, tmp_path: Path) -> Iterator[Service]:
    service = Service(redis_url, tmp_path)
    with service.client:
        try:
            yield service
        finally:
            service.close()
