"""Redis, the API and some workers as processes of their own, on one machine: killed, stopped and started again by the faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.chaos.proxy import HttpProxy, Proxy
from deploy import redis_server
from service import processes
from service.client import ApiClient
from service.errors import ApiProblem, ApiUnavailable
from service.launch import free_port

LEASE_SECONDS = 4.0
NUM_WORKERS, SLOTS = 3, 2
DISK_MIB = 300


class Stack:
    def __init__(self, directory: Path, seed: int) -> None:
        self.directory, self.runs, self.state = directory, directory / "runs", directory / "api"
        for folder in (self.runs, self.state, directory / "redis"):
            folder.mkdir(parents=True, exist_ok=True)
        self.mounted = [folder for folder in (self.runs, self.state) if _mount(folder)]
        self.clock = _clock(directory)
        self.redis_port, self.api_port = free_port(), free_port()
        self.redis_proxy, self.proxy = Proxy(self.redis_port), HttpProxy(self.api_port, seed)
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.restarts = 0
        self.start("redis")
        time.sleep(0.5)
        self.start("api")
        self.client = ApiClient(f"http://127.0.0.1:{self.api_port}", key=self.key("admin"), retries=8)
        self.wait_for_api()
        for number in range(NUM_WORKERS):
            self.start(f"worker-{number}")

    def key(self, role: str) -> str:
        path, deadline = self.directory / "keys" / f"{role}.key", time.monotonic() + 60
        while not path.exists():
            assert time.monotonic() < deadline, f"{path} does not come: {self.log('api')}"
            time.sleep(0.1)
        return path.read_text().strip()

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def start(self, name: str) -> None:
        if name == "redis":
            if self.clock is not None:
                os.environ |= {"LD_PRELOAD": str(self.clock), "CHAOS_CLOCK": str(self.directory / "clock")}
            self.children[name] = redis_server.start(self.directory / "redis", self.redis_port, log=self.log(name))
            os.environ.pop("LD_PRELOAD", None)
            return
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MILLIONWAY_")}
        if name == "api":
            command = [sys.executable, "-m", "api", "--port", str(self.api_port)]
            environment |= {
                "MILLIONWAY_REDIS_URL": f"redis://127.0.0.1:{self.redis_proxy.port}/0",
                "MILLIONWAY_STATE_DIR": str(self.state),
                "MILLIONWAY_LEASE_SECONDS": str(LEASE_SECONDS),
                "MILLIONWAY_GANG_START_SECONDS": "10",
                "MILLIONWAY_KEYS_DIR": str(self.directory / "keys"),
            }
        else:
            command = [sys.executable, "-m", "service.worker", "--api", f"http://127.0.0.1:{self.proxy.port}", "--name", name]
            command += ["--runs-dir", str(self.runs), "--key-file", str(self.directory / "keys" / "worker.key"), "--slots", str(SLOTS)]
            command += ["--device", "cpu", "--address", "127.0.0.1", "--grace-seconds", "20", "--stall-seconds", "60"]
        self.children[name] = processes.spawn(command, environment=environment, log=self.log(name))

    def supervise(self) -> None:
        """Start again what died, as a service manager does."""
        for name, child in list(self.children.items()):
            if child.poll() is not None:
                self.restarts += 1
                self.start(name)

    def wait_for_api(self, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.client.ready()
                return
            except (ApiUnavailable, ApiProblem):
                assert time.monotonic() < deadline, f"the API does not answer: {self.log('api')}"
                self.supervise()
                time.sleep(0.2)

    def ranks(self) -> dict[int, tuple[str, int]]:
        """The living ranks: process id -> run and attempt."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes()
                if f"--run-dir={self.runs}".encode() not in command or (entry / "stat").read_text().split()[2] == "Z":
                    continue
                variables = (entry / "environ").read_bytes().split(b"\0")
            except (OSError, IndexError):
                continue
            for variable in variables:
                if variable.startswith(f"{processes.ATTEMPT_VARIABLE}=".encode()):
                    run_id, _, attempt = variable.decode().partition("=")[2].partition("/")
                    found[int(entry.name)] = (run_id, int(attempt))
        return found

    def close(self) -> list[int]:
        """Stop everything. Returns the processes of attempts that are left."""
        for child in self.children.values():
            child.send_signal(signal.SIGCONT)
        for name in sorted(self.children, reverse=True):  # workers, redis, api: the last cannot need the first
            if name.startswith("worker"):
                self.children[name].send_signal(signal.SIGTERM)
        for name in sorted(self.children, reverse=True):
            processes.end(self.children[name], 60.0)
        time.sleep(1)
        left = list(self.ranks())
        for folder in self.mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)
        return left


def _mount(folder: Path) -> bool:
    """A small file system of its own, which can be filled. Needs root."""
    options = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)]
    return subprocess.run(options, capture_output=True, check=False).returncode == 0


def _clock(directory: Path) -> Path | None:
    """The library that shifts Redis's clock, whose TIME is the only clock of leases. Needs a C compiler."""
    library = directory / "clock.so"
    source = Path(__file__).with_name("clock.c")
    compiled = subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], capture_output=True, check=False)
    return library if compiled.returncode == 0 else None


def history(client: ApiClient, run_id: str) -> list[Any]:
    return [json.loads(transition.model_dump_json()) for transition in client.history(run_id)]
