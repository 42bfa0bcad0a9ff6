"""The deployment under test: its containers, its HTTP interface, and what goes on inside."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

REPOSITORY = Path(__file__).parents[2]
DOCKER = shutil.which("docker") or "docker"
FILES = ("compose.yaml", "tests/compose/compose.yaml")
ENV_FILE = "tests/compose/env"
PROJECT = "millionway-test"
WORKERS = ("w1", "w2", "w3", "w4")
SLOTS = 2
LEASE_SECONDS = 8
AWAY_SECONDS = 60.0
"""How long the API may be away before a request counts as failed."""
Run = dict[str, Any]


class Failed(Exception):
    """What should have been true, and what was."""


def check(condition: bool, message: str) -> None:
    if not condition:
        raise Failed(message)


def compose_command() -> list[str]:
    """`docker compose` where there is one, else docker-compose. Raises Failed without either, and where no engine answers."""
    engine = subprocess.run([DOCKER, "info"], capture_output=True, text=True, check=False) if shutil.which("docker") else None
    check(engine is not None and engine.returncode == 0, "no Docker engine answers `docker info`: install and start one")
    if subprocess.run([DOCKER, "compose", "version"], capture_output=True, check=False).returncode == 0:
        return [DOCKER, "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    raise Failed("neither `docker compose` nor docker-compose is here: install one")


class Stack:
    def __init__(self, compose: list[str], data: Path | None) -> None:
        """`data`: a folder on this machine that the workers see as /data. None: a volume."""
        # Nothing of a deployment of one's own on this machine: neither its .env nor its variables.
        self._compose = [*compose, "--env-file", ENV_FILE, *(part for file in FILES for part in ("-f", file))]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            listen = f"127.0.0.1:{probe.getsockname()[1]}"
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("COMPOSE_", "MILLIONWAY_"))},
            "COMPOSE_PROJECT_NAME": PROJECT,
            "MILLIONWAY_LISTEN": listen,
            "MILLIONWAY_LEASE_SECONDS": str(LEASE_SECONDS),
            "MILLIONWAY_SLOTS": str(SLOTS),
            **({"MILLIONWAY_DATA": str(data.resolve())} if data else {}),
        }
        self._http = httpx.Client(base_url=f"http://{listen}", timeout=30, trust_env=False)

    # Containers

    def compose(self, *arguments: str, seconds: float = 600) -> str:
        return _output([*self._compose, *arguments], self._environment, seconds)

    def docker(self, *arguments: str, seconds: float = 60) -> str:
        return _output([DOCKER, *arguments], self._environment, seconds)

    def up(self) -> None:
        """Start everything, wait until all workers are there, and read the administrator's key."""
        self.compose("up", "-d", "--no-build", "api", *WORKERS)
        self.wait(lambda: self._http.get("/readyz").is_success, "the API is ready", 60)
        key = self.compose("exec", "-T", "api", "cat", "/keys/admin.key").strip()
        self._http.headers["Authorization"] = f"Bearer {key}"
        self.wait_for_free_workers()

    def down(self) -> None:
        """Remove containers, networks and volumes; the images stay."""
        self.compose("--profile", "demo", "down", "--volumes", "--remove-orphans", "--timeout", "5")

    def container(self, service: str) -> str:
        """Its id, also when it has stopped."""
        label = f"label=com.docker.compose.service={service}"
        found = self.docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}", "--filter", label).split()
        check(len(found) == 1, f"{service} has {len(found)} containers")
        return found[0]

    def kill_inside(self, service: str) -> None:
        """SIGKILL to everything in a container but its init, as a crash would; the restart policy is to bring it back."""
        before = self._restarts(service)
        # The shell that calls kill is not itself signalled.
        self.docker("exec", self.container(service), "sh", "-c", "kill -9 -1")
        self.wait(lambda: self._restarts(service) > before, f"the restart policy restarts {service}", 30)

    def _restarts(self, service: str) -> int:
        return int(self.docker("inspect", "-f", "{{.RestartCount}}", self.container(service)))

    def cut(self, service: str) -> None:
        """Take a container off the network."""
        self.docker("network", "disconnect", f"{PROJECT}_service", self.container(service))

    def mend(self, service: str) -> None:
        self.docker("network", "connect", "--alias", service, f"{PROJECT}_service", self.container(service))

    def job_processes(self, service: str) -> int:
        """How many processes of jobs live in a worker's container."""
        return sum("torch.distributed.run" in line or "-m trainer" in line for line in self._top(service))

    def _top(self, service: str) -> list[str]:
        return self.docker("top", self.container(service), "-eo", "pid,args").splitlines()

    def save_logs(self, folder: Path) -> None:
        """What the containers printed, and what the API knows, as far as it can still be had."""
        folder.mkdir(parents=True, exist_ok=True)
        for service in ("setup", "redis", "api", *WORKERS):
            try:
                container = self.container(service)
            except (Failed, subprocess.SubprocessError):
                continue
            with (folder / f"{service}.log").open("wb") as file:
                subprocess.run([DOCKER, "logs", container], stdout=file, stderr=subprocess.STDOUT, timeout=60, check=False)
            with (folder / f"{service}.top").open("wb") as file:
                subprocess.run([DOCKER, "top", container, "-eo", "pid,stat,args"], stdout=file, stderr=file, timeout=60, check=False)
        for name, path in (("runs", "/runs?limit=100"), ("workers", "/workers")):
            try:
                (folder / f"{name}.json").write_bytes(self._http.get(path).content)
            except httpx.HTTPError as error:
                (folder / f"{name}.json").write_text(repr(error))

    # HTTP

    def request(self, method: str, path: str, **arguments: Any) -> Any:
        """The answer's JSON. While the API is away, or has no Redis, it is asked again; every request here may be repeated."""
        return self._ask(method, path, **arguments).json()

    def _ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        deadline = time.monotonic() + AWAY_SECONDS
        while True:
            try:
                answer = self._http.request(method, path, **arguments)
                if answer.status_code != 503 or time.monotonic() > deadline:
                    break
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    raise Failed(f"{method} {path}: no answer for {AWAY_SECONDS:.0f} s: {error!r}") from None
            time.sleep(0.5)
        check(answer.is_success, f"{method} {path}: {answer.status_code} {answer.text[:500]}")
        return answer

    def submit(self, spec: dict[str, Any], key: str) -> Run:
        run: Run = self.request("POST", "/runs", json=spec, headers={"Idempotency-Key": key})
        return run

    def run(self, run_id: str) -> Run:
        run: Run = self.request("GET", f"/runs/{run_id}")
        return run

    def wait_for(self, run_id: str, condition: Callable[[Run], bool], what: str, seconds: float) -> Run:
        """The run once the condition holds."""
        deadline = time.monotonic() + seconds
        while True:
            run = self.run(run_id)
            if condition(run):
                return run
            ended = run["status"] in ("failed", "cancelled") or (run["status"] == "succeeded" and time.monotonic() > deadline - seconds + 5)
            if ended or time.monotonic() > deadline:
                raise Failed(
                    f"{what}: not after {seconds:.0f} s: run {run_id} is {run['status']}, attempt {run['attempt']}: {run['reason']}"
                )
            time.sleep(0.3)

    def succeeded(self, run_id: str, seconds: float = 240) -> Run:
        return self.wait_for(run_id, lambda run: run["status"] == "succeeded", f"run {run_id} succeeds", seconds)

    def weights(self, run: Run) -> dict[str, str]:
        """SHA-256 of every tensor file of the export and of the last checkpoint, downloaded."""
        hashes = {}
        for folder, listing in (("export", "export"), (f"checkpoints/{run['checkpoint_step']}/files",) * 2):
            for file in self.request("GET", f"/runs/{run['id']}/{listing}"):
                if file["name"].endswith(".safetensors"):
                    content = self._ask("GET", f"/runs/{run['id']}/{folder}/{file['name']}").content
                    hashes[f"{folder}/{file['name']}"] = hashlib.sha256(content).hexdigest()
        check(len(hashes) >= 2, f"run {run['id']} has no export and checkpoint to download: {sorted(hashes)}")
        return hashes

    def wait_for_free_workers(self, seconds: float = 90) -> None:
        def free() -> bool:
            workers = [worker for worker in self.request("GET", "/workers") if worker["alive"] and not worker["holds"]]
            return {worker["id"] for worker in workers} >= set(WORKERS)

        self.wait(free, "all workers are heard of, and free", seconds)

    def wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if condition():
                    return
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline:
                raise Failed(f"{what}: not after {seconds:.0f} s")
            time.sleep(0.5)


def _output(command: list[str], environment: dict[str, str], seconds: float) -> str:
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    check(done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}: {done.stderr[-3000:]}")
    return done.stdout
