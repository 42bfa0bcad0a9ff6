"""API keys: 32 random bytes that are shown once. Redis holds their SHA-256, which for so much randomness needs no slow hash.

A key's name is the owner of the runs that it submits: two keys of one name share them, so a key is replaced by making a
second one and revoking the first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import time
from pathlib import Path

from redis.asyncio import Redis

from service.errors import MillionwayError
from service.redis_call import Script
from service.runs import Key, Role

PREFIX = "mw_"
KEY_NAME = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}"
SECRET = r"mw_[A-Za-z0-9_-]{43,128}"  # noqa: S105 - the form of one
FIRST_KEYS = {Role.ADMIN: 0o600, Role.WORKER: 0o640}
"""Each role's file is ROLE.key, with this mode: a worker may run as another user, who then shares the group."""


class Keys:
    """The keys in Redis. Every method raises StoreUnavailable when it does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._call = Script(redis).call

    async def create(self, name: str, role: Role) -> tuple[str, Key]:
        """The secret, which is nowhere else, and its record. Raises MillionwayError for a name that no owner can have."""
        if not re.fullmatch(KEY_NAME, name):
            raise MillionwayError(f"the key's name is {name!r}: give 1 to 63 letters, digits, dots, dashes, underscores or @")
        secret = new_secret()
        key = _key(secret, name, role)
        await self._call("key_create", sha256=sha256(secret), record=key.model_dump_json())
        return secret, key

    async def find(self, digest: str) -> Key | None:
        """The key of this SHA-256, revoked or not."""
        record = (await self._call("key_find", sha256=digest)).get("record")
        return Key.model_validate_json(record) if record else None

    async def list(self) -> list[Key]:
        """Oldest first."""
        records = (await self._call("key_list"))["records"]
        return sorted(map(Key.model_validate_json, records), key=lambda key: key.created_at)

    async def revoke(self, key_id: str) -> Key:
        """Once or more often. Raises KeyNotFound."""
        return Key.model_validate_json((await self._call("key_revoke", id=key_id))["record"])

    async def create_first(self, first: dict[Role, str]) -> bool:
        """These secrets as the only keys, if there is none yet. Whether they are known now; once or more often."""
        records = [{"sha256": sha256(secret), "record": _key(secret, role, role).model_dump_json()} for role, secret in first.items()]
        return bool((await self._call("key_create_first", keys=records))["known"])


def new_secret() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _key(secret: str, name: str, role: Role) -> Key:
    return Key(id=secret[: len(PREFIX) + 6], name=name, role=role, created_at=time.time())


async def make_first_keys(keys: Keys, directory: Path) -> bool:
    """A first key of each role in FIRST_KEYS, in a file of `directory`, unless Redis has keys. Whether Redis knows the keys in the files.

    Of several processes that do this at once one wins, and a process that dies in between is made good by the next. Secrets that are
    there already, e.g. mounted, are taken as they are. A file has its name only once Redis knows its key.

    Blocks for some small files. Raises OSError, MillionwayError, StoreUnavailable.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = await keys.create_first({role: _first_secret(directory, role) for role in FIRST_KEYS})
    for role in FIRST_KEYS:
        # A link, which never replaces: a process that looked between another's two calls has made a second hidden file, which nobody knows.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            if known:
                (directory / f"{role}.key").hardlink_to(_hidden(directory, role))
        _hidden(directory, role).unlink(missing_ok=True)
    return known


def _hidden(directory: Path, role: Role) -> Path:
    return directory / f".{role}.key"


def _first_secret(directory: Path, role: Role) -> str:
    """From the role's file, else from the file that it will be, which is made if need be."""
    for _ in range(3):
        for path in (directory / f"{role}.key", _hidden(directory, role)):
            with contextlib.suppress(FileNotFoundError):
                secret = path.read_text().strip()
                if not re.fullmatch(SECRET, secret):
                    raise MillionwayError(f"{path} holds no API key: put a line into it as `millionway keys create` prints, or remove it")
                return secret
        temporary = directory / f".{role}.{secrets.token_hex(6)}.tmp"
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            os.fchmod(file.fileno(), FIRST_KEYS[role])  # whatever the umask is
            file.write(new_secret() + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            _hidden(directory, role).hardlink_to(temporary)
        temporary.unlink()
    raise MillionwayError(f"the first {role} key in {directory} is made and removed again and again: give each Redis a folder of its own")
