"""The worker process against the real API and Redis."""

from __future__ import annotations

import itertools
import os
import signal
import time

import pytest

from service import processes
from service.errors import AttemptLost
from service.lifecycle import Status
from service.protocol import ClaimRequest, ExitReport
from tests.conftest import wait_until
from tests.process import is_running
from tests.worker.conftest import LEASE_SECONDS, Service


def test_a_dead_api_stops_no_job_and_loses_no_event_and_no_log_byte(service: Service) -> None:
    """The API is killed mid-run and comes back after some seconds: the job never pauses, and all arrives once and in order."""
    run = service.submit("steady", steps=200)
    service.start_worker()
    service.wait(run, Status.RUNNING)
    service.kill_api()
    time.sleep(1.2)
    service.start_api()
    assert service.wait(run, Status.SUCCEEDED).attempt == 1

    progress = [metric.metric for metric in service.client.metrics(run.id).metrics]
    assert [event.step for event in progress] == list(range(1, 201))
    pauses = [after.time - before.time for before, after in itertools.pairwise(progress)]
    assert max(pauses) < 0.7, "the job waited for the API"
    stored, _ = service.client.log(run.id, name="rank-0.log")
    assert stored == service.attempt_file(run, 1, "rank-0.log").read_bytes()


def test_a_cancelled_run_gets_sigterm_and_ends_cancelled(service: Service) -> None:
    """The heartbeat's reply carries the wish; the job is asked first, and nothing of it is left."""
    run = service.submit("steady")
    service.start_worker()
    service.wait(run, Status.RUNNING)
    service.client.cancel(run.id)
    service.wait(run, Status.CANCELLED)
    assert b"got SIGTERM" in service.client.log(run.id)[0]
    assert processes.attempt_processes(run.id) == []


def test_a_job_deaf_to_sigterm_is_killed_after_the_grace(service: Service) -> None:
    """The reason says that it was."""
    run = service.submit("stubborn")
    service.start_worker()
    service.wait(run, Status.RUNNING)
    service.client.cancel(run.id)
    assert "did not end within the grace" in service.wait(run, Status.CANCELLED).reason
    assert processes.attempt_processes(run.id) == []


def test_a_worker_killed_with_9_takes_its_job_along_and_another_finishes_the_run(service: Service) -> None:
    """The kernel kills the job; the lease expires; the second attempt ends well."""
    run = service.submit("steady", steps=200)
    worker = service.start_worker()
    service.wait(run, Status.RUNNING)
    worker.kill()
    worker.wait()
    wait_until(lambda: processes.attempt_processes(run.id) == [], "the job is gone", seconds=1)
    service.start_worker("w2")
    assert service.wait(run, Status.SUCCEEDED).attempt == 2


def test_the_job_of_a_lost_attempt_is_killed_and_disturbs_nothing(service: Service) -> None:
    """A worker that hung beyond its lease comes back: its reports are refused, it kills its job, the new attempt stands."""
    run = service.submit("steady")
    worker = service.start_worker()
    service.wait(run, Status.RUNNING)
    os.kill(worker.pid, signal.SIGSTOP)
    service.wait(run, Status.QUEUED)
    claim = service.client.claim("another", ClaimRequest(host="elsewhere", slots=1, device="cpu"))
    assert claim is not None
    assert claim.attempt == 2
    assert processes.attempt_processes(run.id, 1) != []
    os.kill(worker.pid, signal.SIGCONT)
    wait_until(lambda: processes.attempt_processes(run.id, 1) == [], "the lost job is gone", seconds=LEASE_SECONDS)
    assert service.client.exit(run.id, 2, ExitReport(outcome="finished", reason="done")).status == Status.SUCCEEDED
    assert worker.poll() is None, "the worker went on to the next claim"


def test_sigterm_to_the_worker_gives_the_run_back(service: Service) -> None:
    """The job is asked to write its checkpoint; the run is queued again at once, not when the lease expires."""
    run = service.submit("steady")
    worker = service.start_worker()
    service.wait(run, Status.RUNNING)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0
    assert service.client.run(run.id).status == Status.QUEUED
    assert service.client.history(run.id)[-1].event == "released"
    assert b"got SIGTERM" in service.attempt_file(run, 1, "rank-0.log").read_bytes()


def test_what_a_job_leaves_behind_is_killed_before_its_end_is_reported(service: Service) -> None:
    """Also in another session, where no process group reaches it."""
    run = service.submit("parent")
    service.start_worker()
    service.wait(run, Status.SUCCEEDED)
    left = int(service.client.log(run.id)[0])
    assert not is_running(left)


def test_what_lives_of_an_older_attempt_is_killed_before_the_next_starts(service: Service) -> None:
    """Two jobs would write into one run's directory."""
    run = service.submit("steady", steps=20)
    marked = {**os.environ, **processes.attempt_mark(run.id, 7)}
    old = processes.spawn(["sleep", "600"], environment=marked, log=service.directory / "old.log")
    service.start_worker()
    service.wait(run, Status.SUCCEEDED)
    assert old.wait(1) == -signal.SIGKILL


def test_a_faulty_run_fails_at_once_with_the_jobs_own_words(service: Service) -> None:
    """No second attempt would end otherwise."""
    run = service.submit("faulty")
    service.start_worker()
    run = service.wait(run, Status.FAILED)
    assert run.attempt == 1
    assert "data.path holds no images: name a folder of images" in run.reason


def test_a_broken_job_is_tried_again_and_fails_with_the_end_of_its_log(service: Service) -> None:
    """As often as the specification allows."""
    run = service.submit("broken")
    service.start_worker()
    run = service.wait(run, Status.FAILED)
    assert run.attempt == run.spec.resources.max_attempts == 3
    assert "KeyError: 'stem'" in run.reason


def test_reports_of_an_unknown_attempt_raise_attempt_lost(service: Service) -> None:
    """The worker that made them must stop its processes."""
    run = service.submit("steady")
    with pytest.raises(AttemptLost):
        service.client.heartbeat(run.id, 1)
    with pytest.raises(AttemptLost):
        service.client.heartbeat("0000000000", 1)


def test_a_worker_that_the_api_refuses_ends_with_the_refusal(service: Service) -> None:
    """Asking again would not help."""
    worker = service.start_worker("no such name")
    assert worker.wait(20) == 1
    said = (service.directory / "no such name.log").read_text()
    assert "refuses the worker 'no such name'" in said
    assert "Traceback" not in said


def test_too_many_slots_are_a_mistake_on_the_command_line(service: Service) -> None:
    """With the bounds."""
    worker = service.start_worker("w1", slots=5000)
    assert worker.wait(20) == 2
    assert "--slots is 5000: give 1 to 1024" in (service.directory / "w1.log").read_text()
