from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from service.store import Store
from tests.service.reading import api  # noqa: F401 - a fixture


@pytest.fixture
async def store(redis_url: str, anyio_backend: str) -> AsyncIterator[Store]:
    """On an empty Redis, with leases that no test outlives."""
    async with Store.connect(redis_url, lease_seconds=60) as connected:
        yield connected
