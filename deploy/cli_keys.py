"""`millionway keys`: API keys, straight in Redis, for who runs the control plane."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.table import Table
from rich.text import Text

from deploy.state import DEFAULT, StateDir
from deploy.terminal import State, say, when, wide
from service.errors import MillionwayError
from service.keys import Keys
from service.redis_call import connect
from service.runs import Role
from service.settings import from_environment

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="API keys: make, list and revoke them, on the control plane's host.")

RedisUrl = Annotated[
    str | None,
    typer.Option(
        help="The control plane's Redis, its password in MILLIONWAY_REDIS_PASSWORD_FILE; default: MILLIONWAY_REDIS_URL, else the stack's.",
        show_default=False,
    ),
]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Owner of the runs that are submitted with it; several keys may share one.")],
    role: Annotated[Role, typer.Option(help="user: own runs; worker: executes runs; admin: everything.")] = Role.USER,
    redis_url: RedisUrl = None,
    state_dir: State = DEFAULT,
) -> None:
    """Make a key. It is printed once, alone on standard output, and kept nowhere."""
    secret, key = _with_keys(lambda keys: keys.create(name, role), redis_url, state_dir)
    print(secret)  # noqa: T201 - for $(...)
    print(f"key {key.id} of {name}, role {role}: it is not shown again", file=sys.stderr)  # noqa: T201


@app.command("list")
def list_(redis_url: RedisUrl = None, state_dir: State = DEFAULT) -> None:
    """List the keys, the oldest first."""
    table = Table("key", "name", "role", "created", "revoked", box=None)
    for key in _with_keys(lambda keys: keys.list(), redis_url, state_dir):
        table.add_row(*map(Text, (f"{key.id}...", key.name, key.role, when(key.created_at), when(key.revoked_at))))
    wide().print(table)


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Its first letters, as `millionway keys list` shows them.")],
    redis_url: RedisUrl = None,
    state_dir: State = DEFAULT,
) -> None:
    """Make a key useless, within seconds."""
    revoked = _with_keys(lambda keys: keys.revoke(key.removesuffix("...")), redis_url, state_dir)
    say(f"key {revoked.id} of {revoked.name}, role {revoked.role}: revoked {when(revoked.revoked_at)}")


def _with_keys(work: Callable[[Keys], Awaitable[T]], redis_url: str | None, state_dir: Path) -> T:
    """Raises MillionwayError where no Redis is known."""
    named = redis_url or os.environ.get("MILLIONWAY_REDIS_URL")
    try:
        url = from_environment({**os.environ, "MILLIONWAY_REDIS_URL": named}).redis_url if named else StateDir(state_dir).redis_url()
    except ValueError as error:
        raise MillionwayError(str(error)) from None
    if url is None:
        raise MillionwayError(
            "no Redis known: start a stack here with `millionway up`, or name one with --redis-url or MILLIONWAY_REDIS_URL"
        )

    async def connected() -> T:
        async with connect(url) as redis:
            return await work(Keys(redis))

    return asyncio.run(connected())
