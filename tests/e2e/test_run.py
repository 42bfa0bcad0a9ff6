"""A run from POST to backbone, through the real processes."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import httpx
import pytest

from service.lifecycle import Status
from service.runs import Run
from service.spec import parse_spec
from tests.conftest import wait_until
from tests.e2e.conftest import PATIENCE_SECONDS, Up, cli, document
from tests.process import descendants, is_running

pytestmark = pytest.mark.e2e


def test_a_posted_run_ends_with_a_checkpoint_and_a_backbone_that_loads(steady_up: Up, images: Path) -> None:
    """What a program does that knows HTTP only: POST, poll, read."""
    body = document(images, 2, evaluation={"labelled": str(images), "every_epochs": 1, "k": 5})
    answer = httpx.post(f"{steady_up.url}/runs", json=body, headers={"Authorization": f"Bearer {steady_up.key}"}, trust_env=False)
    assert answer.status_code == 201
    run = steady_up.wait(Run.model_validate(answer.json()), Status.SUCCEEDED, Status.FAILED)
    assert run.status == Status.SUCCEEDED, run.reason
    assert run.num_images == 96
    assert run.progress is not None
    assert run.progress.step == run.progress.num_steps == 12
    assert None not in (run.knn, run.knn_random, run.knn_pixels)

    evaluated = steady_up.client.event_page(run.id, kinds=["evaluated"]).events
    assert [event.data["epoch"] for event in evaluated] == [0, 1, 2]
    checkpoints = steady_up.client.checkpoints(run.id)
    assert checkpoints[-1].step == 12
    assert all(Path(checkpoint.path).is_dir() for checkpoint in checkpoints)
    assert run.export is not None
    assert cli("verify", run.export).returncode == 0


def test_the_run_of_a_worker_killed_with_9_goes_on_from_its_checkpoint(up: Up, images: Path) -> None:
    """The worker's job dies with it, the stack starts another worker, and the second attempt ends the run."""
    run = up.client.submit(parse_spec(document(images, 20)))
    wait_until(lambda: len(up.client.checkpoints(run.id)) > 0, "a checkpoint is written", seconds=PATIENCE_SECONDS)
    worker = up.record()["pids"]["worker"]
    os.kill(worker, signal.SIGKILL)
    run = up.wait(run, Status.SUCCEEDED, Status.FAILED)
    assert (run.status, run.attempt) == (Status.SUCCEEDED, 2), run.reason
    assert up.record()["pids"]["worker"] != worker
    assert "worker ended (signal 9): started again" in up.log.read_text()

    progress = up.client.event_page(run.id, kinds=["progress"]).events
    resumed = next(event.data["step"] for event in progress if event.attempt == 2)
    assert resumed > 2, "the second attempt went on"
    assert progress[-1].data["step"] == 120


def test_ctrl_c_on_up_gives_the_run_back_and_leaves_no_process(tmp_path: Path, images: Path) -> None:
    """The next `up` with the same state ends the run."""
    first = Up(tmp_path)
    run = first.client.submit(parse_spec(document(images, 20)))
    wait_until(lambda: len(first.client.checkpoints(run.id)) > 0, "a checkpoint is written", seconds=PATIENCE_SECONDS)
    pids = first.record()["pids"].values()
    jobs = descendants(first.record()["pids"]["worker"])
    assert len(jobs) >= 3, "a launcher and two ranks"
    first.close()
    assert first.process.returncode == 0
    assert [pid for pid in itertools.chain(pids, jobs) if is_running(pid)] == []
    assert not (first.state_dir / "stack.json").exists()

    (tmp_path / "up.log").unlink()
    second = Up(tmp_path)
    try:
        assert "released" in [step.event for step in second.client.history(run.id)]
        run = second.wait(run, Status.SUCCEEDED, Status.FAILED)
        assert (run.status, run.attempt) == (Status.SUCCEEDED, 2), run.reason
    finally:
        second.close()


def test_a_stack_killed_with_9_leaves_no_process(tmp_path: Path, images: Path) -> None:
    """The kernel takes Redis, the API, the worker, its launcher and the ranks along."""
    stack = Up(tmp_path)
    try:
        run = stack.client.submit(parse_spec(document(images, 20)))
        stack.wait(run, Status.RUNNING)
        pids = [*stack.record()["pids"].values(), *descendants(stack.record()["pids"]["worker"])]
        assert len(pids) >= 7
        stack.process.kill()
        stack.process.wait()
        wait_until(lambda: not any(map(is_running, pids)), "all processes are gone")
    finally:
        stack.close()


def test_a_dead_api_and_a_dead_redis_do_not_stop_training(up: Up, images: Path) -> None:
    """Both are killed mid-run and started again by the stack; the run ends in its first attempt, and no step is missing."""
    run = up.client.submit(parse_spec(document(images, 20)))
    up.wait(run, Status.RUNNING)
    os.kill(up.record()["pids"]["api"], signal.SIGKILL)
    os.kill(up.record()["pids"]["redis"], signal.SIGKILL)
    run = up.wait(run, Status.SUCCEEDED, Status.FAILED)
    assert (run.status, run.attempt) == (Status.SUCCEEDED, 1), run.reason
    progress = up.client.event_page(run.id, kinds=["progress"]).events
    assert [event.data["step"] for event in progress] == list(range(2, 121, 2))


def test_a_run_whose_data_is_at_fault_says_so_and_is_not_tried_again(up: Up, images: Path, tmp_path: Path) -> None:
    """The images vanish between submission and start; the trainer's own words reach the person."""
    gone = tmp_path / "images"
    images_copy = gone / "a"
    images_copy.mkdir(parents=True)
    for path in sorted(images.rglob("*.png"))[:20]:
        (images_copy / path.name).write_bytes(path.read_bytes())
    worker = up.record()["pids"]["worker"]
    os.kill(worker, signal.SIGSTOP)
    run = up.client.submit(parse_spec(document(gone, 1)))
    for path in images_copy.iterdir():
        path.unlink()
    os.kill(worker, signal.SIGCONT)
    run = up.wait(run, Status.FAILED, Status.SUCCEEDED)
    assert (run.status, run.attempt) == (Status.FAILED, 1)
    assert str(gone) in run.reason
    assert run.reason in up.cli("show", run.id).stdout
