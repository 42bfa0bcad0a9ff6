"""What an attempt does besides training: it stops early, notices that it was replaced, shows where it is, resizes and forks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.events import ExitCode
from service.layout import RunDir, read_beat, write_whole
from tests.distributed.job import NUM_STEPS, Job, differing, failure, spec_of, weights
from tests.distributed.test_nodes import rank_codes
from tests.images import noise_folder
from tests.process import descendants
from trainer.checkpoint_files import list_checkpoints

pytestmark = pytest.mark.distributed

ENDLESS = {"schedule": {"steps": 100_000}, "checkpoints": {"every_epochs": 1000}}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_folder(tmp_path_factory.mktemp("data") / "images", 60)


def ranks_of(job: Job) -> list[int]:
    """Process ids of the ranks on the first node, as soon as they have a beat."""
    job.until(lambda: read_beat(job.attempt.beat(0)) and read_beat(job.attempt.beat(1)), "two beats")
    return [pid for pid in descendants(job.launchers[0].pid) if b"-m\0trainer\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_stop_before_the_first_step_leaves_no_checkpoint(images: Path, tmp_path: Path) -> None:
    """Asked for before the job has even begun: nothing to save, and no step is done."""
    job = Job(spec_of(images), tmp_path / "run")
    job.attempt.stop.touch()
    job.wait(60)
    assert rank_codes(job) == [str(ExitCode.STOPPED)], job.logs()
    assert job.events("progress") == []
    assert list_checkpoints(job.run_dir.checkpoints) == []


def test_a_checkpoint_is_reported_before_older_ones_are_removed(images: Path, tmp_path: Path) -> None:
    """Else a job that ends between the two would leave in the list what is gone, and out of it what is there."""
    job_spec = spec_of(images, checkpoints={"every_epochs": 1, "keep_last": 1, "keep_best": False})
    checkpoints = RunDir(tmp_path / "run").checkpoints
    checkpoints.mkdir(parents=True)
    (checkpoints / ".step-000000003.removed").touch()  # in the way of the first removal
    job = Job(job_spec, tmp_path / "run")
    job.wait(60)
    assert [event["step"] for event in job.events("checkpointed")] == [3, 6], job.logs()
    assert [saved.step for saved in list_checkpoints(checkpoints)] == [3, 6]
    assert "Not a directory" in job.events("failed")[0]["message"]


def test_a_stop_breaks_an_evaluation_off_which_is_made_up_for_after_the_resume(images: Path, tmp_path: Path) -> None:
    """The checkpoint is that of the step before the evaluation; the next attempt evaluates it first, and notes the result in it."""
    labelled = tmp_path / "labelled"
    for name in ("a", "b"):
        noise_folder(labelled / name, 1500)
    spec = spec_of(images, evaluation={"labelled": str(labelled), "every_epochs": 1}, **ENDLESS)
    job = Job(spec, tmp_path / "run")
    job.until(lambda: [event["phase"] for event in job.events("phase")].count("evaluating") == 2, "the second evaluation")
    job.attempt.stop.touch()
    job.wait(60)
    assert [event["step"] for event in job.events("evaluated")] == [0]
    assert [(event["step"], event["knn"]) for event in job.events("checkpointed")] == [(3, None)]

    again = Job(spec, tmp_path / "run", 2)
    again.until(lambda: again.events("evaluated"), "an evaluation")
    again.attempt.stop.touch()
    again.wait(60)
    assert again.events("evaluated")[0]["step"] == 3
    assert list_checkpoints(job.run_dir.checkpoints)[0].knn == again.events("evaluated")[0]["knn"]


def test_an_attempt_that_slept_through_its_replacement_ends_within_seconds_and_writes_nothing(images: Path, tmp_path: Path) -> None:
    """SIGSTOP to everything, a newer attempt's fence, SIGCONT: exit code 76, a line in each rank's log, no checkpoint."""
    job = Job(spec_of(images, **ENDLESS), tmp_path / "run")
    job.until_step(3)
    pids = [job.launchers[0].pid, *descendants(job.launchers[0].pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    write_whole(job.run_dir.fence, "2")
    job.attempt.stop.touch()  # else it would not even try to write
    for pid in reversed(pids):
        os.kill(pid, signal.SIGCONT)
    begun = time.monotonic()
    job.wait(30)
    assert time.monotonic() - begun < 10
    assert rank_codes(job) == [str(ExitCode.FENCED)], job.logs()
    assert any("a newer attempt has begun" in log or "attempt 2 of this run has begun" in log for log in [job.logs()])
    assert list_checkpoints(job.run_dir.checkpoints) == []
    assert job.events("failed") == []


def test_a_rank_that_fails_after_a_newer_attempt_has_begun_is_fenced_and_reports_no_failure(tmp_path: Path) -> None:
    """Its peers saw the fence first, and their connections broke: what then fails here is nothing of the run's."""
    run_dir = RunDir(tmp_path / "run")
    run_dir.path.mkdir()
    write_whole(run_dir.fence, "2")  # and no specification: it fails
    unwatched = "from trainer import __main__, fence; fence.Fence.watch = lambda self: None; raise SystemExit(__main__.main())"
    command = [sys.executable, "-c", unwatched, "--run-dir", str(run_dir.path), "--attempt"]
    codes = [subprocess.run([*command, number], env=os.environ | {"RANK": "0"}, timeout=60, check=False).returncode for number in "12"]
    assert codes == [ExitCode.FENCED, 1]
    assert not run_dir.attempt(1).events.exists()
    assert "No such file" in run_dir.attempt(2).events.read_text()


def test_each_rank_shows_where_it_is_and_on_request_its_stacks(images: Path, tmp_path: Path) -> None:
    """Beats move with the steps; SIGUSR1 puts all threads' Python stacks into the rank's log, and training goes on."""
    job = Job(spec_of(images, **ENDLESS), tmp_path / "run")
    ranks = ranks_of(job)
    assert len(ranks) == 2
    job.until_step(3)
    beats = [read_beat(job.attempt.beat(rank)) for rank in (0, 1)]
    assert all(beat and beat.phase == "training" and abs(time.time() - beat.time) < 20 for beat in beats)
    for pid in ranks:
        os.kill(pid, signal.SIGUSR1)
    job.until(lambda: all("most recent call first" in job.attempt.rank_log(rank).read_text() for rank in (0, 1)), "two stacks")
    assert "train.py" in job.attempt.rank_log(1).read_text()
    later = job.events("progress")[-1]["step"] + 20
    job.until_step(later)
    beat = read_beat(job.attempt.beat(1))
    assert beat is not None
    assert beat.step > later - 20
    job.attempt.stop.touch()
    job.wait()


def losses(*jobs: Job) -> dict[int, float]:
    return {event["step"]: event["loss"] for job in jobs for event in job.events("progress")}


def test_a_run_resized_in_mid_epoch_goes_on_as_if_it_had_not_been(images: Path, tmp_path: Path) -> None:
    """Two ranks, stopped within an epoch, one rank, stopped, four ranks on two nodes: with synchronised BatchNorm every loss is
    that of the run which two ranks did alone."""
    backbone = {"args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]}, "batch_norm": "synchronised"}
    spec = spec_of(images, backbone=backbone, checkpoints={"every_epochs": 1000})
    shapes: list[dict[str, int]] = [{}, {"ranks_per_node": 1}, {"nodes": 2, "ranks_per_node": 2}]
    jobs: list[Job] = []
    for number, shape in enumerate(shapes, 1):
        job = Job(spec, tmp_path / "resized", number, **shape)
        if number < len(shapes):
            job.until_step(4 if number == 1 else jobs[0].events("checkpointed")[-1]["step"] + 4)
            job.attempt.stop.touch()
        job.wait()
        jobs.append(job)
    assert jobs[-1].launchers[0].returncode == 0, jobs[-1].logs()
    assert [job.events("started")[0]["world_size"] for job in jobs] == [2, 1, 4]
    assert [event for job in jobs for event in job.events("warned")] == []
    whole = Job(spec, tmp_path / "whole")
    assert whole.wait() == 0, whole.logs()
    expected = losses(whole)
    assert sorted(expected) == list(range(1, NUM_STEPS + 1))
    assert losses(*jobs) == pytest.approx(expected, rel=1e-4)


def test_a_resize_with_batch_norm_of_each_rank_is_warned_of(images: Path, tmp_path: Path) -> None:
    """Everything else carries over; the statistics are of another number of images."""
    spec = spec_of(images, **ENDLESS)
    for number, ranks in ((1, 2), (2, 1)):
        job = Job(spec, tmp_path / "run", number, ranks_per_node=ranks)
        job.until_step(3)
        job.attempt.stop.touch()
        job.wait()
        warnings = [event["message"] for event in job.events("warned")]
        assert len(warnings) == number - 1
    assert "takes its statistics from 20 images where it took them from 10" in warnings[0]


def test_a_number_of_ranks_that_does_not_divide_the_batch_is_refused_with_the_reason(images: Path, tmp_path: Path) -> None:
    """20 images do not divide by three ranks, whatever resources says."""
    event = failure(Job(spec_of(images), tmp_path / "run", ranks_per_node=3))
    assert event["code"] == "bad_spec"
    assert "not divisible by the 3 ranks of this attempt" in event["message"]


def test_a_fork_goes_on_from_another_runs_checkpoint_with_its_own_schedule(images: Path, tmp_path: Path) -> None:
    """Unchanged it ends with the parent's bits; with other settings it trains on to the end, and then has checkpoints of its own to
    resume from."""
    parent = Job(spec_of(images, checkpoints={"every_epochs": 4, "keep_last": 5}), tmp_path / "parent")
    assert parent.wait() == 0, parent.logs()
    start = parent.run_dir.checkpoint(12)

    same = Job(spec_of(images), tmp_path / "same", start_from=start)
    assert same.wait() == 0, same.logs()
    assert same.events("started")[0]["start_step"] == 12
    assert differing(weights(tmp_path / "same"), weights(tmp_path / "parent")) == []

    changed = {
        "schedule": {"steps": 30, "warmup_steps": 0},
        "classifier": {"temperature": 0.2, "smoothing": 0.3, "hardest_k": 7, "hardest_by": "class_similarity", "refresh_epochs": 5},
        "optimizer": {"learning_rate": 0.01},
        "augmentation": {"views_per_image": 2},
        "zero_stage": 1,
    }
    other = Job(spec_of(images, **changed), tmp_path / "other", start_from=start, ranks_per_node=1)
    assert other.wait() == 0, other.logs()
    assert sorted(losses(other)) == list(range(13, 31))
    searches = [event["phase"] for event in other.events("phase")].count("similarity")
    assert searches == 2  # at once, since the parent had no table, and after 15 steps
    resumed = Job(spec_of(images, **changed), tmp_path / "other", 2, start_from=start)
    assert resumed.wait() == 0, resumed.logs()
    assert resumed.events("started")[0]["start_step"] == 30
