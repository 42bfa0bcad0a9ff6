"""The worker process against the real API and Redis: what becomes of runs on one node."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from service import processes
from service.errors import AttemptLost
from service.layout import RunDir
from service.lifecycle import Status
from service.protocol import EventBatch, ExitReport
from tests.conftest import wait_until
from tests.process import is_running
from tests.worker.conftest import LEASE_SECONDS, FakeWorker, Service


def test_a_dead_api_stops_no_job_and_loses_no_event_and_no_log_byte(service: Service) -> None:
    """The API is killed mid-run and comes back after some seconds: the job never pauses, and all arrives once and in order."""
    run = service.submit("steady", steps=200)
    service.start_worker()
    service.wait(run, Status.RUNNING)
    service.kill_api()
    time.sleep(1.2)
    service.start_api()
    assert service.wait(run, Status.SUCCEEDED).attempt == 1

    events = service.events(run.id, "progress")
    assert [event["step"] for event in events] == list(range(1, 201))
    pauses = [after["time"] - before["time"] for before, after in itertools.pairwise(events)]
    assert max(pauses) < 0.7, "the job waited for the API"
    assert service.log(run) == service.attempt_file(run, 1, "rank-0.log").read_bytes()


def test_a_worker_killed_with_9_takes_its_job_along_and_another_finishes_the_run(service: Service) -> None:
    """The kernel kills the job; the lease expires; the second attempt ends well."""
    run = service.submit("steady", steps=200)
    worker = service.start_worker()
    service.wait(run, Status.RUNNING)
    worker.kill()
    worker.wait()
    wait_until(lambda: processes.attempt_processes(run.id) == [], "the job is gone", seconds=2)
    service.start_worker("w2")
    assert service.wait(run, Status.SUCCEEDED).attempt == 2


def test_a_worker_that_starts_anew_is_known_at_once_and_takes_the_run_again(service: Service) -> None:
    """Long before its lease would expire: the new process says that it holds nothing of the old one's."""
    run = service.submit("steady", steps=200)
    worker = service.start_worker()
    service.wait(run, Status.RUNNING)
    worker.kill()
    worker.wait()
    service.start_worker()
    assert service.wait(run, Status.SUCCEEDED).attempt == 2
    assert "started anew" in service.client.history(run.id)[3].reason


def test_what_an_earlier_process_of_the_worker_left_is_killed_before_the_next_polls(service: Service) -> None:
    """Of this worker alone: one of the same name may serve another stack on this machine."""
    marks = {
        name: processes.attempt_mark("0000000000", 3, f"w1 {where}")
        for name, where in (("mine", service.runs_dir), ("other", "/elsewhere"))
    }
    left = {
        name: processes.spawn(["sleep", "600"], environment={**os.environ, **mark}, log=service.directory / "left.log")
        for name, mark in marks.items()
    }
    service.start_worker()
    assert left["mine"].wait(10) == -signal.SIGKILL
    wait_until(lambda: service.client.workers(), "the worker polls")
    assert left["other"].poll() is None
    left["other"].kill()
    left["other"].wait()


def test_the_job_of_a_lost_attempt_is_killed_and_disturbs_nothing(service: Service) -> None:
    """A worker that hung beyond its lease comes back: its reports are refused, it kills its job, the new attempt stands."""
    run = service.submit("steady")
    worker = service.start_worker()
    service.wait(run, Status.RUNNING)
    os.kill(worker.pid, signal.SIGSTOP)
    service.wait(run, Status.QUEUED)
    FakeWorker(service, storage=(service.runs_dir / ".millionway-storage").read_text()).take()
    assert processes.attempt_processes(run.id, 1) != []
    os.kill(worker.pid, signal.SIGCONT)
    wait_until(lambda: processes.attempt_processes(run.id, 1) == [], "the lost job is gone", seconds=2 * LEASE_SECONDS)
    report = ExitReport(worker="another", outcome="finished", reason="done")
    assert service.client.exit(run.id, 2, report).status == Status.SUCCEEDED
    assert worker.poll() is None, "the worker goes on"


def test_an_attempt_that_finds_a_newer_one_in_the_fence_does_not_start(service: Service) -> None:
    """It was offered before the newer one, and comes late."""
    run = service.submit("steady", steps=20)
    (service.runs_dir / run.id).mkdir(parents=True)
    (service.runs_dir / run.id / "fence").write_text("2")
    service.start_worker()
    assert service.wait(run, Status.SUCCEEDED).attempt == 2
    assert "attempt 2 of the run has begun already" in service.client.history(run.id)[2].reason
    assert not service.attempt_file(run, 1, "rank-0.log").exists()


def test_a_run_from_a_restored_backup_counts_up_to_its_fence(service: Service) -> None:
    """Though it had more attempts since the backup than its budget of failures allows."""
    run = service.submit("steady", steps=20)
    (service.runs_dir / run.id).mkdir(parents=True)
    (service.runs_dir / run.id / "fence").write_text("14")
    assert run.spec.retries.infrastructure < 13
    service.start_worker()
    assert service.wait(run, Status.SUCCEEDED, Status.FAILED).attempt == 14


def test_a_pin_reaches_the_job_at_once(service: Service) -> None:
    """Long before the worker's next poll is due; between them the job might remove the checkpoint."""
    service.kill_api()
    service.lease_seconds = 60.0  # a poll waits a quarter of it
    service.start_api()
    run = service.submit("steady")
    service.start_worker()
    service.wait(run, Status.RUNNING)
    service.request(run, "pause")
    service.wait(run, Status.PAUSED)
    service.request(run, "resume")
    step = service.wait(run, Status.RUNNING).checkpoint_step
    time.sleep(1.0)  # the worker waits for news
    service.http.put(f"/runs/{run.id}/checkpoints/{step}/pin").raise_for_status()
    pins = RunDir(service.runs_dir / run.id).pins
    wait_until(lambda: json.loads(pins.read_text()) == [step], "the pin is there for the job to read", seconds=3)


def test_a_job_that_stops_moving_is_killed_with_its_stacks_in_the_log(service: Service) -> None:
    """Another attempt follows: a hang is the infrastructure's fault."""
    run = service.submit("stuck", ranks_per_node=2)
    service.start_worker("w1", 2, "--stall-seconds", "1")
    lost = service.entry(run, "lost", seconds=30)
    assert re.search(r"no rank of this node moved for \d+ s in phase training at step 120", lost.reason)
    for rank in (0, 1):
        assert b"in hang" in service.log(run, f"rank-{rank}.log")
    member = service.get(f"/runs/{run.id}/attempts")[0]["members"][0]
    assert "in hang" in member["log_tail"]
    assert processes.attempt_processes(run.id, 1) == []


def test_two_runs_share_a_worker(service: Service) -> None:
    """Each on its own slots and its own port."""
    runs = [service.submit("steady", steps=100) for _ in range(2)]
    service.start_worker("w1", 2, "--shared")
    for run in runs:
        service.wait(run, Status.RUNNING)
    worker = service.client.workers()[0]
    assert sorted(slot for holding in worker.holds for slot in holding.slots) == [0, 1]
    for run in runs:
        assert service.wait(run, Status.SUCCEEDED).attempt == 1


def test_what_a_job_leaves_behind_is_killed_before_its_end_is_reported(service: Service) -> None:
    """Also in another session, where no process group reaches it."""
    run = service.submit("parent")
    service.start_worker()
    service.wait(run, Status.SUCCEEDED)
    left = int(service.log(run))
    assert not is_running(left)


def test_what_lives_of_an_older_attempt_is_killed_before_the_next_starts(service: Service) -> None:
    """Two jobs would write into one run's directory."""
    run = service.submit("steady", steps=20)
    marked = {**os.environ, **processes.attempt_mark(run.id, 0, "another worker")}
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


def test_the_same_error_at_the_same_step_twice_ends_the_run(service: Service) -> None:
    """With the end of its log; a third attempt would meet it again."""
    run = service.submit("broken")
    service.start_worker()
    run = service.wait(run, Status.FAILED)
    assert run.attempt == 2
    assert run.termination_reason == "repeated_error"
    assert "KeyError: 'stem'" in run.reason
    assert "KeyError: 'stem'" in service.get(f"/runs/{run.id}/attempts")[0]["members"][0]["log_tail"]


def test_a_rank_that_a_signal_ended_is_the_infrastructures_failure(service: Service) -> None:
    """The kernel does that when memory runs out: the budget of crashes is not touched."""
    run = service.submit("shot", ranks_per_node=2)
    service.start_worker("w1", 2)
    service.wait(run, Status.RUNNING)
    assert "rank 1 was ended by signal 9" in service.entry(run, "lost").reason


def test_a_data_folder_outside_of_the_roots_is_refused(service: Service, tmp_path: Path) -> None:
    """The reason names field, value and roots; nothing is started."""
    (tmp_path / "data").mkdir()
    run = service.submit("steady")
    service.start_worker("w1", 1, "--data-root", str(tmp_path / "data"))
    run = service.wait(run, Status.FAILED)
    assert "data.path is '/unused'" in run.reason
    assert str(tmp_path / "data") in run.reason
    assert not service.attempt_file(run, 1, "rank-0.log").exists()


def test_a_lead_without_a_free_port_says_so(service: Service) -> None:
    """The range that it may use is named."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = service.submit("steady")
        service.start_worker("w1", 1, "--ports", f"{port}-{port}")
        assert f"of {port}-{port}" in service.entry(run, "lost").reason


def test_reports_of_an_unknown_attempt_raise_attempt_lost(service: Service) -> None:
    """The worker that made them must stop its processes."""
    run = service.submit("steady")
    events = EventBatch(events=[{"seq": 1, "time": 1.0, "kind": "phase", "phase": "training"}])
    with pytest.raises(AttemptLost):
        service.client.events(run.id, 1, events)
    with pytest.raises(AttemptLost):
        service.client.events("0000000000", 1, events)
