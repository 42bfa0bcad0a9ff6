"""The embedded stack: Redis, the API and one worker as child processes, started in order, watched, and stopped in order."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import redis

from deploy import redis_server
from deploy.state import StackError, StateDir
from service import processes
from service.client import ApiClient
from service.errors import ApiProblem, ApiUnavailable
from service.launch import free_port
from service.layout import write_whole
from service.runs import Role, Worker
from service.worker.machine import default_slots

API_PORT = 8765
HOST = "127.0.0.1"
READY_SECONDS = 60.0
MAX_RESTARTS = 5
RESTART_WINDOW_SECONDS = 60.0
JOB_GRACE_SECONDS = 30.0


@dataclass
class Child:
    name: str
    start: Callable[[], subprocess.Popen[bytes]]
    stop_seconds: float
    """Between SIGTERM and SIGKILL."""
    process: subprocess.Popen[bytes] | None = None
    restarts: list[float] = field(default_factory=list)


class Stack:
    """A context manager: the stack is ready inside and gone after. Raises StackError."""

    def __init__(
        self,
        state: StateDir,
        *,
        port: int | None = None,
        slots: int | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self._state, self._say = state, say
        self._api_port = _port(port)
        self._redis_port = free_port()
        self._redis_password = ""
        self.slots = slots or default_slots()
        self.url = f"http://{HOST}:{self._api_port}"
        self._holding = state.held()
        # In starting order; stopped the other way round, so that the worker can still give its run back.
        self._children = [
            Child("redis", self._start_redis, stop_seconds=15.0),
            Child("api", self._start_api, stop_seconds=10.0),
            Child("worker", self._start_worker, stop_seconds=JOB_GRACE_SECONDS + 15.0),
        ]

    def __enter__(self) -> Self:
        self._holding.__enter__()
        try:
            self._redis_password = self._state.make_redis_password()
            checks = {"redis": self._redis_answers, "api": self._api_answers, "worker": self._worker_is_known}
            for child in self._children:
                child.process = child.start()
                self._wait_until(checks[child.name], child)
            self._write_stack_file()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            for child in reversed(self._children):
                if child.process is not None:
                    processes.end(child.process, child.stop_seconds)
        except KeyboardInterrupt:
            self._say("stopping at once")
        finally:
            for child in self._children:
                if child.process is not None:
                    processes.end(child.process, 0.0)
            self._holding.__exit__(None, None, None)

    def supervise(self) -> None:
        """Restart what died, and say so. Call it about twice a second. Raises StackError when one dies again and again."""
        for child in self._children:
            code = None if child.process is None else child.process.poll()
            if code is None:
                continue
            now = time.monotonic()
            child.restarts = [t for t in child.restarts if now - t < RESTART_WINDOW_SECONDS]
            if len(child.restarts) >= MAX_RESTARTS:
                raise StackError(self._died(child, code, f"for the {MAX_RESTARTS + 1}th time in {RESTART_WINDOW_SECONDS:.0f} s"))
            child.restarts.append(now)
            self._say(f"{child.name} ended ({_how(code)}): started again; see {self._state.log(child.name)}")
            child.process = child.start()
            self._write_stack_file()

    def _start_redis(self) -> subprocess.Popen[bytes]:
        try:
            return redis_server.start(self._state.redis, self._redis_port, log=self._state.log("redis"), password=self._redis_password)
        except FileNotFoundError as error:
            raise StackError(str(error)) from None

    def _start_api(self) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "MILLIONWAY_REDIS_URL": f"redis://{HOST}:{self._redis_port}/0",
            "MILLIONWAY_REDIS_PASSWORD_FILE": str(self._state.redis_password.resolve()),
            "MILLIONWAY_STATE_DIR": str(self._state.api.resolve()),
            "MILLIONWAY_KEYS_DIR": str(self._state.keys.resolve()),
            "MILLIONWAY_RUNS_DIR": str(self._state.runs.resolve()),
            "MILLIONWAY_SHARED_FILES": "1",
        }
        self._state.api.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "api", "--host", HOST, "--port", str(self._api_port)]
        return processes.spawn(command, environment=environment, log=self._state.log("api"))

    def _start_worker(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "service.worker", "--api", self.url, "--runs-dir", str(self._state.runs), "--name", "local"]
        command += ["--slots", str(self.slots), "--grace-seconds", str(JOB_GRACE_SECONDS)]
        command += ["--key-file", str(self._state.keys / f"{Role.WORKER}.key")]
        return processes.spawn(command, environment=os.environ, log=self._state.log("worker"))

    def _redis_answers(self) -> bool:
        try:
            with redis.Redis(port=self._redis_port, password=self._redis_password, socket_timeout=2) as connection:
                return bool(connection.ping())
        except redis.RedisError:
            return False

    def _api_answers(self) -> bool:
        return self._workers() is not None

    def _worker_is_known(self) -> bool:
        return any(worker.alive for worker in self._workers() or ())

    def _workers(self) -> list[Worker] | None:
        """None while the API does not serve, or has not made its keys yet."""
        key = self._state.key(Role.ADMIN)
        if key is None:
            return None
        with ApiClient(self.url, key=key, timeout_seconds=5, retries=0) as client:
            try:
                return client.workers()
            except (ApiUnavailable, ApiProblem):
                return None

    def _wait_until(self, ready: Callable[[], bool], child: Child) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not ready():
            assert child.process is not None  # noqa: S101 - started just before
            if (code := child.process.poll()) is not None:
                raise StackError(self._died(child, code, "while starting"))
            if time.monotonic() > deadline:
                raise StackError(f"{child.name} is not ready after {READY_SECONDS:.0f} s; {self._end_of_log(child)}")
            time.sleep(0.1)

    def _died(self, child: Child, code: int, when: str) -> str:
        return f"{child.name} ended {when} ({_how(code)}); {self._end_of_log(child)}"

    def _end_of_log(self, child: Child) -> str:
        log = self._state.log(child.name)
        lines = log.read_text(errors="replace").splitlines()[-15:] if log.exists() else []
        return f"the end of {log}:\n" + "\n".join(lines or ["(empty)"])

    def _write_stack_file(self) -> None:
        pids = {child.name: child.process.pid for child in self._children if child.process is not None}
        record = {"url": self.url, "pids": {"stack": os.getpid(), **pids}, "redis_port": self._redis_port, "slots": self.slots}
        write_whole(self._state.stack, json.dumps(record, indent=2))


def _port(wanted: int | None) -> int:
    port = API_PORT if wanted is None else wanted
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as uvicorn: a connection that just ended is no obstacle
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if wanted is None:
                return free_port()
            raise StackError(f"port {wanted} on {HOST} cannot be used ({error.strerror}): give another --port, or none") from None
    return port


def _how(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
