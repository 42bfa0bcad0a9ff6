"""The worker as a process: its name, its key, its command line, its end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from service import processes
from service.lifecycle import Status
from tests.conftest import wait_until
from tests.worker.conftest import FakeWorker, Service


def test_no_key_is_in_a_log_of_worker_or_job(service: Service) -> None:
    """Nor in the job's environment, nor in an error."""
    run = service.submit("steady", steps=100)
    service.start_worker()
    service.wait(run, Status.RUNNING)
    for pid in processes.attempt_processes(run.id):
        assert b"mw_" not in Path(f"/proc/{pid}/environ").read_bytes()
    service.kill_api()
    wait_until(lambda: "api_away" in service.worker_log().read_text(), "the worker notices")
    service.start_api()
    service.wait(run, Status.SUCCEEDED)
    for log in [service.worker_log(), *service.runs_dir.rglob("*.log")]:
        assert "mw_" not in log.read_text(errors="replace"), log


def test_a_wrong_key_ends_the_worker_with_a_word_that_does_not_hold_it(service: Service, tmp_path: Path) -> None:
    """Asking again would not help."""
    key = tmp_path / "wrong.key"
    key.write_text("mw_" + "x" * 43)
    worker = service.start_worker("w1", 1, "--key-file", str(key))
    assert worker.wait(20) == 1
    said = service.worker_log().read_text()
    assert "refuses the worker 'w1'" in said
    assert "mw_x" not in said
    assert "Traceback" not in said


def test_a_worker_waits_for_its_keys_file(service: Service, tmp_path: Path) -> None:
    """The control plane writes it when it starts for the first time."""
    key = tmp_path / "late.key"
    service.start_worker("w1", 1, "--key-file", str(key))
    wait_until(lambda: "waiting_for_key" in service.worker_log().read_text(), "the worker waits")
    key.write_text(service.worker_key + "\n")
    wait_until(lambda: service.client.workers(), "the worker polls")


def test_a_name_in_use_on_another_host_is_asked_for_until_it_is_free(service: Service) -> None:
    """The worker says whose it is."""
    run = service.submit("steady", steps=20)
    other = FakeWorker(service, "w1", slots=1, device="cuda", leaving=True)
    for _ in range(3):
        other.poll()
        if not service.worker_log().exists():
            service.start_worker()
        time.sleep(0.5)
    wait_until(lambda: "elsewhere" in service.worker_log().read_text(), "the worker says why")
    service.wait(run, Status.SUCCEEDED)


def test_a_worker_that_another_process_replaced_kills_its_jobs_and_ends(service: Service) -> None:
    """Two processes of one name would each believe in their own job."""
    run = service.submit("steady")
    first = service.start_worker()
    service.wait(run, Status.RUNNING)
    second = service.start_worker()
    assert first.wait(10) == 1
    assert second.poll() is None
    assert "newer process" in service.worker_log().read_text()
    wait_until(lambda: service.wait(run, Status.RUNNING).attempt > 1, "the second has the run")
    attempt = service.client.run(run.id).attempt  # the first may have been given another before it learned
    assert all(processes.attempt_processes(run.id, number) == [] for number in range(1, attempt))


def test_a_worker_that_the_api_refuses_ends_with_the_refusal(service: Service) -> None:
    """Asking again would not help."""
    worker = service.start_worker("no such name")
    assert worker.wait(20) == 1
    said = service.worker_log("no such name").read_text()
    assert "refuses the worker 'no such name'" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--slots", "5000"), "--slots is 5000: give 1 to 1024"),
        (("--ports", "80"), "'80': give FIRST-LAST within 1 to 65535"),
        (("--data-root", "data"), "--data-root is 'data': give an absolute path"),
        (("--shared", "--exclusive"), "not allowed with argument"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(service: Service, options: tuple[str, ...], told: str) -> None:
    """With the bounds."""
    worker = service.start_worker("w1", 1, *options)
    assert worker.wait(20) == 2
    assert told in service.worker_log().read_text()
