"""No test leaves a job behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed.job import Job


@pytest.fixture(autouse=True)
def no_job_is_left() -> Iterator[None]:
    yield
    while Job.started:
        Job.started.pop().kill()
