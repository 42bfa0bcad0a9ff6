"""The state directory of an embedded stack, and who holds it.

STATE_DIR/
  stack.json     URL and process ids of the running stack; absent without one
  lock           held (flock) by the stack's process
  redis/         Redis's append-only file
  api/           the API's own files: logs of the runs
  keys/          admin.key, worker.key, and redis.password; this user's alone
  runs/          the runs' directories (service/layout.py)
  logs/          what redis, the API and the worker print
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service.errors import MillionwayError
from service.layout import write_whole
from service.runs import Role

DEFAULT = Path(".millionway")
LOCK_TRIES, LOCK_PAUSE_SECONDS = 10, 0.02


class StackError(MillionwayError):
    """The stack cannot start or go on; the message carries the remedy."""


@dataclass(frozen=True)
class StateDir:
    path: Path

    @property
    def stack(self) -> Path:
        return self.path / "stack.json"

    @property
    def redis(self) -> Path:
        return self.path / "redis"

    @property
    def api(self) -> Path:
        return self.path / "api"

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def redis_password(self) -> Path:
        return self.keys / "redis.password"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    def log(self, process: str) -> Path:
        return self.path / "logs" / f"{process}.log"

    def key(self, role: Role) -> str | None:
        """The secret of the stack's own key, None before its first start."""
        try:
            return (self.keys / f"{role}.key").read_text().strip()
        except FileNotFoundError:
            return None

    def make_redis_password(self) -> str:
        """The one that the Redis of this directory has, made once. Raises StackError."""
        try:
            self.keys.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.redis_password.exists():
                write_whole(self.redis_password, secrets.token_hex(32))
            return self.redis_password.read_text()
        except OSError as error:
            raise StackError(f"{self.keys} cannot be written ({error}): correct its permissions, or give another --state-dir") from None

    def redis_url(self) -> str | None:
        """With its password; None without a running stack."""
        if self.running_url() is None:
            return None
        port = json.loads(self.stack.read_text())["redis_port"]
        return f"redis://:{self.redis_password.read_text()}@127.0.0.1:{port}/0"

    def running_url(self) -> str | None:
        """URL of the stack that holds this directory now, None without one."""
        try:
            with (self.path / "lock").open("r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            with contextlib.suppress(OSError, ValueError, KeyError):
                return str(json.loads(self.stack.read_text())["url"])
        except OSError:
            pass
        return None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the directory for one stack. Raises StackError that names the process which holds it already."""
        try:
            (self.path / "logs").mkdir(parents=True, exist_ok=True)
            file = (self.path / "lock").open("a+")
        except OSError as error:
            raise StackError(f"the state directory {self.path} cannot be written ({error}): give another with --state-dir") from None
        with file:
            for _ in range(LOCK_TRIES):
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(LOCK_PAUSE_SECONDS)  # running_url holds it for an instant
            else:
                file.seek(0)
                raise StackError(
                    f"a stack runs in {self.path} already, process {file.read().strip() or 'unknown'}: "
                    "use it, stop it (Ctrl-C or SIGTERM), or give another --state-dir"
                )
            self.stack.unlink(missing_ok=True)  # of a stack that was killed: its URL is not ours
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            try:
                yield
            finally:
                self.stack.unlink(missing_ok=True)
