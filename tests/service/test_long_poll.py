"""Waiting for a run to change, instead of asking again and again."""

from __future__ import annotations

import threading
import time

from service.protocol import RunPatch
from service.runs import Run
from tests.service.reading import Reading


def test_a_change_is_answered_when_it_happens(api: Reading) -> None:
    """Long before the time is over, and with what has changed."""
    run = api.submit()
    found: list[Run] = []
    reader = threading.Thread(target=lambda: found.append(api.client.run(run.id, wait_for_version=run.version + 1, wait_seconds=20)))
    reader.start()
    time.sleep(0.3)
    assert found == []
    begun = time.monotonic()
    api.client.edit(run.id, RunPatch(priority=7))
    reader.join(5)
    assert time.monotonic() - begun < 10
    assert (found[0].priority, found[0].version) == (7, run.version + 1)


def test_a_version_that_is_there_already_is_answered_at_once(api: Reading) -> None:
    """Also one that is long past."""
    run = api.submit()
    begun = time.monotonic()
    for version in (0, run.version):
        assert api.client.run(run.id, wait_for_version=version, wait_seconds=20).version == run.version
    assert time.monotonic() - begun < 10


def test_without_a_change_the_run_is_answered_as_it_is(api: Reading) -> None:
    """When the time is over, and not before."""
    run = api.submit()
    begun = time.monotonic()
    assert api.client.run(run.id, wait_for_version=run.version + 1, wait_seconds=0.5).version == run.version
    assert 0.5 <= time.monotonic() - begun < 5


def test_every_change_has_a_version_of_its_own(api: Reading) -> None:
    """Reports of the job are changes too: who waits for one version after another misses none that lasts."""
    run = api.started()
    versions = [run.version]
    for step in range(1, 4):
        api.report(run, api.progress(step))
        run = api.client.run(run.id, wait_for_version=versions[-1] + 1, wait_seconds=5)
        assert run.progress is not None
        assert run.progress.step == step
        versions.append(run.version)
    assert versions == sorted(set(versions))


def test_the_wait_is_bounded(api: Reading) -> None:
    """A minute at most: 422 beyond."""
    run = api.submit()
    answer = api.http.get(f"/runs/{run.id}", params={"wait_for_version": 9, "timeout": 61})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "timeout")
