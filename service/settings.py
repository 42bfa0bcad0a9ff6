"""What an operator sets of the control plane, by environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    redis_url: str = "redis://127.0.0.1:6379/0"
    """MILLIONWAY_REDIS_URL; redis://, rediss:// or unix://."""
    state_dir: Path = Path(".millionway")
    """MILLIONWAY_STATE_DIR: where the API keeps the runs' logs."""
    lease_seconds: float = 15.0
    """MILLIONWAY_LEASE_SECONDS: how long a worker may be silent before its run goes to another."""
    shared_files: bool = False
    """MILLIONWAY_SHARED_FILES=1: this process sees the workers' files, so a submission's paths are checked."""

    def __post_init__(self) -> None:
        if not 0.1 <= self.lease_seconds <= 3600:
            raise ValueError(f"the lease is {self.lease_seconds:g} s: give between 0.1 and 3600 s")

    @property
    def logs_dir(self) -> Path:
        return self.state_dir / "logs"


def from_environment(environment: Mapping[str, str]) -> Settings:
    """Raises ValueError, which names the variable, its value and the remedy."""
    default = Settings()
    lease, shared = environment.get("MILLIONWAY_LEASE_SECONDS", ""), environment.get("MILLIONWAY_SHARED_FILES", "")
    try:
        lease_seconds = float(lease) if lease else default.lease_seconds
    except ValueError:
        raise ValueError(f"MILLIONWAY_LEASE_SECONDS is {lease!r}: give a number of seconds, e.g. 15") from None
    if shared not in ("", "0", "1"):
        raise ValueError(f"MILLIONWAY_SHARED_FILES is {shared!r}: give 1 where the API sees the workers' files, else 0")
    return Settings(
        redis_url=environment.get("MILLIONWAY_REDIS_URL") or default.redis_url,
        state_dir=Path(environment.get("MILLIONWAY_STATE_DIR") or default.state_dir),
        lease_seconds=lease_seconds,
        shared_files=shared == "1",
    )
