"""A real Redis server for the session, emptied before each test, and the real API in front of it.

The session's API schedules in its own database (1), so that it does not meddle with tests of the store (0).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis
import uvicorn

from api.app import create_app
from api.connections import Connection
from deploy import redis_server
from service import processes
from service.keys import Keys, new_secret
from service.launch import free_port
from service.redis_call import connect
from service.runs import Role
from service.settings import Settings

FIRST_KEYS = {Role.ADMIN: new_secret(), Role.WORKER: new_secret()}
"""The same for the whole session: an API remembers a key for some seconds."""
ADMIN_KEY, WORKER_KEY = FIRST_KEYS.values()
NO_LIMIT = 1e6
"""Requests per second."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes (make test): tests of whole jobs take both cores of a small machine, and go one after another in one of them;
    those of whole stacks, which mostly wait, in another."""
    for item in items:
        for kind in ("distributed", "e2e"):
            if item.get_closest_marker(kind):
                item.add_marker(pytest.mark.xdist_group(kind))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@contextmanager
def running_redis(directory: Path, port: int, password: str | None = None) -> Iterator[str]:
    """A server that answers, and its URL."""
    server = redis_server.start(directory, port, password=password)
    try:
        with redis.Redis(port=port, password=password, socket_timeout=2) as client:
            wait_until(lambda: _answers(client), "Redis answers")
        yield f"redis://:{password}@127.0.0.1:{port}" if password else f"redis://127.0.0.1:{port}"
    finally:
        processes.end(server, grace_seconds=5)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.exceptions.ConnectionError:
        return False


@pytest.fixture(scope="session")
def redis_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_redis(tmp_path_factory.mktemp("redis"), free_port()) as url:
        yield url


@pytest.fixture
def redis_url(redis_session: str) -> str:
    """An empty database with no API in front of it."""
    return emptied(f"{redis_session}/0")


def emptied(url: str) -> str:
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


def new_key(redis_url: str, name: str, role: Role = Role.USER) -> str:
    """The secret of another key."""

    async def create() -> str:
        async with connect(redis_url) as connected:
            return (await Keys(connected).create(name, role))[0]

    return asyncio.run(create())


def with_first_keys(redis_url: str) -> str:
    async def create() -> None:
        async with connect(redis_url) as connected:
            assert await Keys(connected).create_first(FIRST_KEYS)

    asyncio.run(create())
    return redis_url


@contextmanager
def running_api(settings: Settings) -> Iterator[str]:
    """The real application behind a real server, and its URL."""
    config = uvicorn.Config(create_app(settings), http=Connection, port=0, log_config=None, access_log=False, timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)  # a stream that nobody reads any more must not keep the tests from ending
    thread.start()
    try:
        wait_until(lambda: server.started, "the API listens")
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="session")
def api_session(redis_session: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings(redis_url=f"{redis_session}/1", state_dir=tmp_path_factory.mktemp("api"), rate_limit=NO_LIMIT)
    with running_api(settings) as url:
        yield url


@pytest.fixture
def api_url(api_session: str, redis_session: str) -> str:
    """The API on an empty database, but for FIRST_KEYS."""
    with_first_keys(emptied(f"{redis_session}/1"))
    return api_session


@pytest.fixture
def user_key(api_url: str, redis_session: str) -> str:
    """Of alice, who may see nothing of others."""
    return new_key(f"{redis_session}/1", "alice")


@pytest.fixture
def stranger(api_url: str) -> Iterator[httpx.Client]:
    """Without a key."""
    with httpx.Client(base_url=api_url, trust_env=False, timeout=10) as client:
        yield client


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def http(api_url: str) -> Iterator[httpx.Client]:
    """With the administrator's key."""
    with httpx.Client(base_url=api_url, headers=bearer(ADMIN_KEY), trust_env=False, timeout=10) as client:
        yield client


def wait_until(condition: Callable[[], object], what: str, *, seconds: float = 10.0) -> None:
    """Ask every 20 ms; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)
