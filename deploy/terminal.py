"""What the commands share: the console, their common options, and the client of the API that they mean."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.display import clock
from deploy.state import DEFAULT, StateDir
from service.admission import is_url
from service.client import ApiClient
from service.errors import InvalidSpec, MillionwayError
from service.runs import Role
from service.spec import RunSpec, read_spec

console = Console()

RETRIES, PATIENT_RETRIES = 4, 8
"""Of a call, for 4 s; of what goes on for a while, for a minute: delays double, from a quarter of a second."""

Api = Annotated[str | None, typer.Option("--api", envvar="MILLIONWAY_API", help="URL of the API; default: the stack in .millionway.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file", envvar="MILLIONWAY_KEY_FILE", help="File with the API key; default: the key in MILLIONWAY_KEY, else the stack's."
    ),
]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id; see `millionway runs`.")]
SpecFile = Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="The run's specification, YAML or JSON.")]
State = Annotated[Path, typer.Option("--state-dir", help="Where the stack keeps everything.")]


def connect(api: str | None, key_file: Path | None, *, state: StateDir = StateDir(DEFAULT), retries: int = RETRIES) -> ApiClient:
    """A client of the API that is named, or of the stack in `state`. Raises MillionwayError where no API is known, or the key cannot be
    read."""
    here = state.running_url()
    url = api or here
    if url is None:
        raise MillionwayError("no API known: start one here with `millionway up`, or name one with --api URL or MILLIONWAY_API")
    key = _read_key(key_file) if key_file else os.environ.get("MILLIONWAY_KEY")
    if key is None and url == here:  # to another's API the stack's key is not shown
        key = state.key(Role.ADMIN)
    return ApiClient(url, key=key, retries=retries)


def _read_key(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise MillionwayError(f"the key file {path} cannot be read: {error}") from None


def load_spec(path: Path) -> RunSpec:
    """The specification in a file, its relative paths made absolute against the current directory. Raises InvalidSpec."""
    try:
        spec = read_spec(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise MillionwayError(f"{path} cannot be read: {error}") from None
    except InvalidSpec as error:
        raise MillionwayError("\n".join([f"{path} is wrong:", *(f"  {mistake}" for mistake in error.errors)])) from None
    named = {"data": {"path": spec.data.path, "index": spec.data.index}}
    named["evaluation"] = {"labelled": spec.evaluation.labelled, "queries": spec.evaluation.queries}
    absolute = {
        section: {field: str(Path(path).resolve()) for field, path in paths.items() if path and not is_url(path)}
        for section, paths in named.items()
    }
    return spec.model_copy(update={section: getattr(spec, section).model_copy(update=paths) for section, paths in absolute.items()})


def say(message: str) -> None:
    """A line as it is: no markup, no wrapping."""
    console.print(message, soft_wrap=True, markup=False, highlight=False)


def wide() -> Console:
    """A console that does not wrap tables to 80 columns outside a terminal."""
    return console if console.is_terminal else Console(width=200)


def when(seconds: float | None) -> str:
    """A Unix time as date and time; `-` for None."""
    return "-" if seconds is None else clock(seconds)
