"""What an operator sets of the control plane, by environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import quote, urlsplit, urlunsplit

from redis.asyncio.connection import parse_url


@dataclass(frozen=True)
class Settings:
    redis_url: str = field(default="redis://127.0.0.1:6379/0", repr=False)
    """MILLIONWAY_REDIS_URL; redis://, rediss:// or unix://. MILLIONWAY_REDIS_PASSWORD_FILE names a file with the password."""
    state_dir: Path = Path(".millionway")
    """MILLIONWAY_STATE_DIR: where the API keeps the runs' logs."""
    lease_seconds: float = 15.0
    """MILLIONWAY_LEASE_SECONDS: how long a worker may be silent before its runs go to others."""
    gang_start_seconds: float = 60.0
    """MILLIONWAY_GANG_START_SECONDS: how long the workers of an attempt may take to accept it before it is placed anew."""
    shared_files: bool = False
    """MILLIONWAY_SHARED_FILES=1: this process sees the data as the workers do, so a submission's paths are checked."""
    runs_dir: Path | None = None
    """MILLIONWAY_RUNS_DIR: where this process sees the workers' runs directory, so that checkpoints and exports can be downloaded."""
    data_roots: tuple[str, ...] = ()
    """MILLIONWAY_DATA_ROOTS, separated by colons: a submission's paths must lie in one of these folders. Default: anywhere."""
    keys_dir: Path | None = None
    """MILLIONWAY_KEYS_DIR: where the first keys are written, admin.key and worker.key, if there is no key yet."""
    max_queued: int = 10_000
    """MILLIONWAY_MAX_QUEUED: most queued runs of one owner."""
    max_log_bytes: int = 64 << 20
    """MILLIONWAY_MAX_LOG_MIB, in MiB: of a longer log of one rank the beginning and the newest part are kept."""
    rate_limit: float = 200.0
    """MILLIONWAY_RATE_LIMIT: requests per second of one key, over a few seconds. Workers' reports are not counted."""

    def __post_init__(self) -> None:
        try:
            parse_url(self.redis_url)
        except ValueError:  # its message may hold a part of the password
            example = "redis://HOST:6379/0"
            raise ValueError(
                f"MILLIONWAY_REDIS_URL is no URL of a Redis: give one such as {example}, and MILLIONWAY_REDIS_PASSWORD_FILE"
            ) from None
        if not 0.1 <= self.lease_seconds <= 3600:
            raise ValueError(f"the lease is {self.lease_seconds:g} s: give between 0.1 and 3600 s")
        for root in self.data_roots:
            if not PurePosixPath(root).is_absolute():
                raise ValueError(f"MILLIONWAY_DATA_ROOTS names {root!r}: give absolute paths")

    @property
    def logs_dir(self) -> Path:
        return self.state_dir / "logs"


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Raises ValueError, which names the variable, its value and the remedy."""
    default = Settings()
    shared = environment.get("MILLIONWAY_SHARED_FILES", "")
    if shared not in ("", "0", "1"):
        raise ValueError(f"MILLIONWAY_SHARED_FILES is {shared!r}: give 1 where the API sees the workers' files, else 0")
    runs_dir, keys_dir = environment.get("MILLIONWAY_RUNS_DIR"), environment.get("MILLIONWAY_KEYS_DIR")
    redis_url = environment.get("MILLIONWAY_REDIS_URL") or default.redis_url
    return Settings(
        redis_url=_with_password(redis_url, environment.get("MILLIONWAY_REDIS_PASSWORD_FILE")),
        state_dir=Path(environment.get("MILLIONWAY_STATE_DIR") or default.state_dir),
        lease_seconds=_number(environment, "MILLIONWAY_LEASE_SECONDS", default.lease_seconds),
        gang_start_seconds=_number(environment, "MILLIONWAY_GANG_START_SECONDS", default.gang_start_seconds),
        shared_files=shared == "1",
        runs_dir=Path(runs_dir) if runs_dir else None,
        data_roots=tuple(root for root in environment.get("MILLIONWAY_DATA_ROOTS", "").split(":") if root),
        keys_dir=Path(keys_dir) if keys_dir else None,
        max_queued=int(_number(environment, "MILLIONWAY_MAX_QUEUED", default.max_queued)),
        max_log_bytes=int(_number(environment, "MILLIONWAY_MAX_LOG_MIB", default.max_log_bytes / (1 << 20)) * (1 << 20)),
        rate_limit=_number(environment, "MILLIONWAY_RATE_LIMIT", default.rate_limit),
    )


def _number(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "")
    try:
        number = float(text) if text else default
    except ValueError:
        number = -1.0
    if not 0 < number < 1e9:
        raise ValueError(f"{name} is {text!r}: give a number greater than 0, e.g. {default:g}")
    return number


def _with_password(url: str, file: str | None) -> str:
    if not file:
        return url
    try:
        password = Path(file).read_text().strip()
    except OSError as error:
        raise ValueError(f"MILLIONWAY_REDIS_PASSWORD_FILE is {file!r}, which cannot be read: {error.strerror}") from None
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f":{quote(password, safe='')}@{parts.netloc.rpartition('@')[2]}"))
