"""Why a queued run waits, in its record."""

from __future__ import annotations

from service.lifecycle import Status
from service.protocol import RunPatch
from service.spec import parse_spec
from tests.conftest import wait_until
from tests.service.reading import Reading
from tests.service.test_plan import document


def test_every_queued_run_has_a_reason_at_any_moment(api: Reading) -> None:
    """From the answer to its submission's next read on."""
    for _ in range(20):
        run = api.client.run(api.client.submit(parse_spec(document())).id)
        assert run.status == Status.QUEUED
        assert run.wait is not None
        assert run.wait.reasons
        assert run.wait.reasons[0].message in run.reason


def test_runs_of_one_kind_have_places_of_their_own(api: Reading) -> None:
    """The reasons are shared, the position is not; a raised priority is seen."""
    first, second = (api.client.submit(parse_spec(document())).id for _ in range(2))

    def positions() -> list[int | None]:
        waits = [api.client.run(run_id).wait for run_id in (first, second)]
        return [wait.position if wait else None for wait in waits]

    wait_until(lambda: positions() == [1, 2], "both are seen in order")
    api.client.edit(second, RunPatch(priority=5))
    wait_until(lambda: positions() == [2, 1], "the second is tried first")
