"""API keys: how they are made, kept, found and revoked."""

from __future__ import annotations

import asyncio
import os
import re
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from api import known_keys
from api.known_keys import KnownKeys
from service.errors import KeyNotFound, MillionwayError
from service.keys import SECRET, Keys, make_first_keys, new_secret, sha256
from service.redis_call import connect
from service.runs import Key, Role
from tests.conftest import bearer, new_key, wait_until


class CountedKeys(Keys):
    calls = 0

    async def find(self, digest: str) -> Key | None:
        self.calls += 1
        return await super().find(digest)


@pytest.mark.anyio
async def test_redis_is_not_asked_for_every_request(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for a right key nor for a wrong one; and guesses push no right key out of a memory that stays small."""
    monkeypatch.setattr(known_keys, "MAX_KEPT", 10)
    async with connect(redis_url) as redis:
        keys = CountedKeys(redis)
        secret, key = await keys.create("carol", Role.USER)
        known = KnownKeys(keys)
        assert [await known.find(sha256(secret)) for _ in range(5)] == [key] * 5
        assert keys.calls == 1
        assert [await known.find(sha256(f"mw_{n}")) for n in range(50) for _ in range(2)] == [None] * 100
        assert keys.calls == 51
        assert await known.find(sha256(secret)) == key
        assert keys.calls == 51
        assert len(known._wrong) == 10


@pytest.mark.anyio
async def test_redis_holds_no_secret(redis_url: str) -> None:
    """Only its hash, and its first letters for people."""
    async with connect(redis_url) as redis:
        secret, key = await Keys(redis).create("dave", Role.USER)
        assert re.fullmatch(SECRET, secret)
        stored = str(await redis.hgetall("millionway:keys"))
        assert sha256(secret) in stored
        assert secret not in stored
        assert secret.startswith(key.id)
        assert len(key.id) == 9
        with pytest.raises(KeyNotFound):
            await Keys(redis).revoke("mw_nothing")
        for name in ("", "a b", "a:b", "x" * 64, "../x"):
            with pytest.raises(MillionwayError, match="give 1 to 63"):
                await Keys(redis).create(name, Role.USER)


def _make(redis_url: str, directory: str) -> bool:
    async def make() -> bool:
        async with connect(redis_url) as redis:
            return await make_first_keys(Keys(redis), Path(directory))

    return asyncio.run(make())


def _works(redis_url: str, secret: str) -> Role | None:
    async def find() -> Role | None:
        async with connect(redis_url) as redis:
            key = await Keys(redis).find(sha256(secret))
            return key.role if key else None

    return asyncio.run(find())


def test_the_first_keys_are_made_once_by_whoever_comes_first(redis_url: str, tmp_path: Path) -> None:
    """Eight at once, in two folders: one pair of keys, in one folder, readable by the user and, the worker's, by the group."""
    folders = [str(tmp_path / name) for name in ("a", "b")]
    with ThreadPoolExecutor(8) as pool:
        known = list(pool.map(_make, [redis_url] * 8, folders * 4))
    assert any(known)
    [folder] = [Path(f) for f in folders if (Path(f) / "admin.key").exists()]
    assert sorted(path.name for f in folders for path in Path(f).iterdir()) == ["admin.key", "worker.key"]
    assert [stat.S_IMODE((folder / name).stat().st_mode) for name in ("admin.key", "worker.key", ".")] == [0o600, 0o640, 0o700]
    assert [_works(redis_url, (folder / f"{role}.key").read_text().strip()) for role in ("admin", "worker")] == [Role.ADMIN, Role.WORKER]
    before = [(folder / f"{role}.key").read_bytes() for role in ("admin", "worker")]
    (folder / ".worker.key").write_text(new_secret())  # by a process that looked while another gave the first its name
    assert _make(redis_url, str(folder))
    assert not (folder / ".worker.key").exists()
    assert [(folder / f"{role}.key").read_bytes() for role in ("admin", "worker")] == before


@pytest.mark.parametrize("registered", [False, True])
def test_first_keys_whose_maker_died_are_made_good(redis_url: str, tmp_path: Path, registered: bool) -> None:
    """Before Redis knew them, or after: the next process gives the same keys their names."""
    secrets = {Role.ADMIN: new_secret(), Role.WORKER: new_secret()}
    for role, secret in secrets.items():
        (tmp_path / f".{role}.key").write_text(secret)

    async def register() -> None:
        async with connect(redis_url) as redis:
            assert await Keys(redis).create_first(secrets)

    if registered:
        asyncio.run(register())
    assert _make(redis_url, str(tmp_path))
    assert {role: (tmp_path / f"{role}.key").read_text() for role in secrets} == secrets


def test_there_are_no_first_keys_beside_others(redis_url: str, tmp_path: Path) -> None:
    """Who has made keys needs none, and a file of them would open nothing."""
    new_key(redis_url, "eve", Role.ADMIN)
    assert not _make(redis_url, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_holds_no_key_is_named(redis_url: str, tmp_path: Path) -> None:
    """A weak or mutilated secret is not taken."""
    (tmp_path / "admin.key").write_text("secret\n")
    with pytest.raises(MillionwayError, match=r"admin\.key holds no API key"):
        _make(redis_url, str(tmp_path))


def keys_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.cli", "keys", *arguments]
    given = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=given, check=False)


def test_the_command_line_makes_lists_and_revokes_keys(redis_url: str, api_url: str, redis_session: str) -> None:
    """On the Redis that the option, or the environment, names; the secret stands alone on standard output."""
    url = f"{redis_session}/1"
    made = keys_command("create", "frank", "--role", "worker", "--redis-url", url)
    secret = made.stdout.strip()
    assert re.fullmatch(SECRET, secret), made
    assert secret not in made.stderr
    assert httpx.get(f"{api_url}/workers", headers=bearer(secret)).status_code == 403
    listed = keys_command("list", MILLIONWAY_REDIS_URL=url).stdout
    assert "frank" in listed
    assert secret not in listed
    assert "revoked" in keys_command("revoke", secret[:9], "--redis-url", url).stdout
    wait_until(lambda: httpx.get(f"{api_url}/workers", headers=bearer(secret)).status_code == 401, "the key is refused")
    again = keys_command("revoke", "mw_nothing", "--redis-url", url)
    assert (again.returncode, "millionway keys list" in again.stderr) == (1, True)
