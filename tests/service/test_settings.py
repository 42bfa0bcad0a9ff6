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
        "MILLIONWAY_SHARED_FILES": "1",
    }
    assert from_environment(given) == Settings(redis_url="unix:///r", state_dir=Path("/s"), lease_seconds=2.0, shared_files=True)


@pytest.mark.parametrize(
    ("name", "value"), [("LEASE_SECONDS", "soon"), ("LEASE_SECONDS", "0"), ("LEASE_SECONDS", "nan"), ("SHARED_FILES", "yes")]
)
def test_a_wrong_setting_is_named_with_its_value_and_the_remedy(name: str, value: str) -> None:
    """At the start, not at the first request."""
    with pytest.raises(ValueError, match=f"{value}.*: give"):
        from_environment({f"MILLIONWAY_{name}": value})
