"""How a job is stopped: by file, by signal, by force; and where its run goes on."""

from __future__ import annotations

import signal
import time

from service import processes
from service.lifecycle import Status
from tests.conftest import wait_until
from tests.worker.conftest import Service


def test_a_cancelled_run_is_asked_for_a_checkpoint_by_file_and_ends_cancelled(service: Service) -> None:
    """The poll's answer carries the wish; no signal is needed, and nothing of the job is left."""
    run = service.submit("steady")
    service.start_worker()
    service.wait(run, Status.RUNNING)
    service.request(run, "cancel")
    run = service.wait(run, Status.CANCELLED)
    assert run.checkpoint_step
    assert b"checkpoint at" in service.log(run)
    assert b"SIGTERM" not in service.log(run)
    assert processes.attempt_processes(run.id) == []


def test_a_killed_run_ends_at_once_without_a_checkpoint(service: Service) -> None:
    """Neither file nor SIGTERM comes first."""
    run = service.submit("steady")
    service.start_worker()
    service.wait(run, Status.RUNNING)
    service.request(run, "kill")
    run = service.wait(run, Status.CANCELLED)
    assert run.checkpoint_step is None
    assert b"checkpoint" not in service.log(run)
    assert processes.attempt_processes(run.id) == []


def test_a_job_that_sees_no_stop_file_gets_sigterm_after_the_grace(service: Service) -> None:
    """DeepSpeed's launcher hands it on."""
    run = service.submit("deaf")
    service.start_worker()
    service.wait(run, Status.RUNNING)
    service.request(run, "cancel")
    assert service.wait(run, Status.CANCELLED).checkpoint_step
    assert b"got SIGTERM" in service.log(run)


def test_a_job_deaf_to_sigterm_is_killed_after_the_grace(service: Service) -> None:
    """The reason says that it was."""
    run = service.submit("stubborn")
    service.start_worker()
    service.wait(run, Status.RUNNING)
    service.request(run, "cancel")
    assert "did not end within the grace" in service.wait(run, Status.CANCELLED).reason
    assert processes.attempt_processes(run.id) == []


def test_a_paused_run_goes_on_from_its_checkpoint(service: Service) -> None:
    """In another attempt, of a higher number in the fence."""
    run = service.submit("steady", steps=150)
    service.start_worker()
    service.wait(run, Status.RUNNING)
    service.request(run, "pause")
    saved = service.wait(run, Status.PAUSED).checkpoint_step
    assert saved
    service.request(run, "resume")
    assert service.wait(run, Status.SUCCEEDED).attempt == 2
    assert (service.runs_dir / run.id / "fence").read_text() == "2"
    steps = service.steps(run.id)
    assert [steps.count(step) for step in range(1, 151)] == [1] * 150, "no step twice, none left out"


def test_sigterm_to_the_worker_gives_the_run_back_with_a_checkpoint(service: Service) -> None:
    """The run is queued again at once, not when the lease expires, and the next attempt goes on where it was."""
    run = service.submit("steady", steps=150)
    worker = service.start_worker()
    service.wait(run, Status.RUNNING)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == 0
    run = service.client.run(run.id)
    assert run.status == Status.QUEUED
    assert service.client.history(run.id)[-1].event == "released"
    assert run.checkpoint_step
    service.start_worker("w2")
    service.wait(run, Status.SUCCEEDED)
    assert service.steps(run.id) == list(range(1, 151))


def test_sigterm_to_an_idle_worker_ends_it_at_once(service: Service) -> None:
    """It does not wait for its poll to be answered, and the API offers it nothing more."""
    service.kill_api()
    service.lease_seconds = 40.0
    service.start_api()
    worker = service.start_worker()
    wait_until(lambda: service.client.workers(), "the worker polls")
    time.sleep(0.5)  # its second poll waits for ten seconds
    began = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(5) == 0
    assert time.monotonic() - began < 3.0
    run = service.submit("steady")
    time.sleep(0.5)
    assert service.client.run(run.id).status == Status.QUEUED
