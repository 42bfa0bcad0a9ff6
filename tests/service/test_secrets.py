"""Keys and passwords are shown nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from service import processes
from service.keys import new_secret
from service.launch import free_port
from tests.conftest import bearer, running_redis, wait_until


@pytest.fixture
def guarded_redis(tmp_path: Path) -> Iterator[tuple[str, str, int]]:
    """A server with a password: its URL, the password and the port."""
    port, password = free_port(), new_secret()
    with running_redis(tmp_path / "redis", port, password) as url:
        yield url, password, port


def test_no_secret_is_in_a_log_an_answer_or_a_list_of_processes(guarded_redis: tuple[str, str, int], tmp_path: Path) -> None:
    """A session with everything that goes wrong: refusals that repeat what was sent, a wrong password, a Redis that goes away."""
    _, password, port = guarded_redis
    secret_file, keys_dir, api_port = tmp_path / "password", tmp_path / "keys", free_port()
    environment = {
        **os.environ,
        "MILLIONWAY_REDIS_URL": f"redis://127.0.0.1:{port}/0",
        "MILLIONWAY_REDIS_PASSWORD_FILE": str(secret_file),
        "MILLIONWAY_STATE_DIR": str(tmp_path / "state"),
        "MILLIONWAY_KEYS_DIR": str(keys_dir),
    }
    command = [sys.executable, "-m", "api", "--port", str(api_port)]
    url, answers, user = f"http://127.0.0.1:{api_port}", [], ""

    def session() -> None:
        wait_until(lambda: _is_up(url), "the API answers", seconds=30)
        key = (keys_dir / "admin.key").read_text().strip() if keys_dir.exists() else new_secret()
        secrets.add(key)
        for headers in (bearer(key), bearer(key + "x"), {"Authorization": f"Basic {key}"}, {"Authorization": f"Bearer {key} {key}"}):
            for method, path in (
                ("GET", "/runs"),
                ("GET", "/readyz"),
                ("POST", "/runs"),
                ("GET", "/runs/x?limit=1"),
                ("POST", "/workers/w/poll"),
            ):
                answers.append(httpx.request(method, url + path, headers=headers, json={"data": {"path": "relative"}}))
        answers.append(httpx.post(f"{url}/runs", headers=bearer(key), json={"preset": "demo", "data": {"path": "/data"}}))

    secrets = {password, user} - {""}
    for text in (password, "wrong"):
        secret_file.write_text(text)
        server = processes.spawn(command, environment=environment, log=tmp_path / "api.log")
        session()
        processes.end(server, 10)
    statuses = {answer.status_code for answer in answers}
    assert {200, 201, 401, 422, 503} <= statuses
    shown = [(tmp_path / "api.log").read_text(), *(answer.text + str(answer.headers) for answer in answers)]
    shown += [path.read_bytes().decode(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    secrets |= {(keys_dir / "worker.key").read_text().strip()}
    assert len(secrets) >= 3
    for secret in secrets:
        assert not [text for text in shown if secret in text]


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").is_success
    except httpx.TransportError:
        time.sleep(0.1)
        return False


def test_a_wrong_redis_url_is_not_repeated(tmp_path: Path) -> None:
    """It may hold the password."""
    environment = {**os.environ, "MILLIONWAY_REDIS_URL": "redis://:hunter/2@127.0.0.1:6379/0"}
    process = subprocess.run(
        [sys.executable, "-m", "api", "--port", str(free_port())], capture_output=True, text=True, timeout=30, env=environment, check=False
    )
    assert process.returncode == 2
    assert "MILLIONWAY_REDIS_PASSWORD_FILE" in process.stderr
    assert "hunter" not in process.stderr + process.stdout
