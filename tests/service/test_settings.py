from __future__ import annotations

from pathlib import Path

import pytest

from service.settings import Settings, from_environment


def test_settings_come_from_the_environment() -> None:
    """Each by its variable; what is absent keeps its default."""
    assert from_environment({}) == Settings()
    given = {
        "MILLIONWAY_REDIS_URL": "unix:///r",
        "MILLIONWAY_STATE_DIR": "/s",
        "MILLIONWAY_LEASE_SECONDS": "2",
        "MILLIONWAY_GANG_START_SECONDS": "3.5",
        "MILLIONWAY_SHARED_FILES": "1",
        "MILLIONWAY_RUNS_DIR": "/runs",
        "MILLIONWAY_DATA_ROOTS": "/data:/more",
        "MILLIONWAY_KEYS_DIR": "/keys",
        "MILLIONWAY_MAX_QUEUED": "7",
        "MILLIONWAY_MAX_LOG_MIB": "2",
        "MILLIONWAY_RATE_LIMIT": "10",
    }
    assert from_environment(given) == Settings(
        redis_url="unix:///r",
        state_dir=Path("/s"),
        lease_seconds=2.0,
        gang_start_seconds=3.5,
        shared_files=True,
        runs_dir=Path("/runs"),
        data_roots=("/data", "/more"),
        keys_dir=Path("/keys"),
        max_queued=7,
        max_log_bytes=2 << 20,
        rate_limit=10.0,
    )


def test_the_password_of_redis_is_in_a_file_and_is_not_shown(tmp_path: Path) -> None:
    """Whatever characters it has; neither settings that are logged nor an error show it."""
    file = tmp_path / "password"
    file.write_text("p@ss/word\n")
    given = {"MILLIONWAY_REDIS_URL": "redis://redis:6379/0", "MILLIONWAY_REDIS_PASSWORD_FILE": str(file)}
    settings = from_environment(given)
    assert settings.redis_url == "redis://:p%40ss%2Fword@redis:6379/0"
    assert "p%40ss" not in repr(settings)
    with pytest.raises(ValueError, match=r"MILLIONWAY_REDIS_PASSWORD_FILE is '/absent', which cannot be read"):
        from_environment(given | {"MILLIONWAY_REDIS_PASSWORD_FILE": "/absent"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LEASE_SECONDS", "soon"),
        ("LEASE_SECONDS", "0"),
        ("LEASE_SECONDS", "nan"),
        ("MAX_QUEUED", "-1"),
        ("RATE_LIMIT", "inf"),
        ("SHARED_FILES", "yes"),
        ("DATA_ROOTS", "data"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_the_remedy(name: str, value: str) -> None:
    """At the start, not at the first request."""
    with pytest.raises(ValueError, match=f"{value}.*: give"):
        from_environment({f"MILLIONWAY_{name}": value})
