"""The command line against the real stack."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from service.launch import free_port
from service.lifecycle import Status
from tests.conftest import wait_until
from tests.e2e.conftest import CLI, PATIENCE_SECONDS, REPOSITORY, Up, cli, document
from tests.images import noise_folder

pytestmark = pytest.mark.e2e


def spec_file(folder: Path, images: Path | str, epochs: int) -> Path:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(document(images, epochs)))
    return path


def test_submit_watch_follows_the_run_to_its_end(steady_up: Up, images: Path, tmp_path: Path) -> None:
    """A relative path means the folder that the person is in, and the exit code says how it ended."""
    spec_file(tmp_path, os.path.relpath(images, tmp_path), 2)
    done = steady_up.cli("submit", "spec.yaml", "--watch", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout.splitlines()[-1]
    assert "step 12/12" in done.stdout

    newest = steady_up.client.runs(limit=1).runs[0]
    assert newest.spec.data.path == str(images.resolve())
    shown = steady_up.cli("show", newest.id).stdout
    assert all(text in shown for text in (newest.id, "succeeded", str(newest.checkpoint), str(newest.export), "place -> starting"))
    assert newest.id in steady_up.cli("runs", "--status", "succeeded").stdout
    assert "rank 1" in steady_up.cli("logs", newest.id, "--rank", "1").stdout
    assert "there is: rank-0.log of attempt 1" in steady_up.cli("logs", newest.id, "--rank", "7").stderr


def test_a_run_is_planned_forked_and_downloaded(steady_up: Up, images: Path, tmp_path: Path) -> None:
    """The plan knows the images, the place and, once a run has trained, the duration; the fork trains on; what is fetched is verified."""
    spec = spec_file(tmp_path, images, 2)
    done = steady_up.cli("submit", str(spec), "--watch")
    assert done.returncode == 0, done.stdout + done.stderr
    planned = steady_up.cli("plan", str(spec))
    assert planned.returncode == 0, planned.stderr
    for text in ("starts now on 2 ranks: local", "images      96", "rows             0.0 MiB", "duration    0:00:"):
        assert text in planned.stdout, planned.stdout

    parent = steady_up.client.runs(limit=1).runs[0]
    longer = steady_up.cli("fork", parent.id, "--set", "schedule.epochs=3", "--watch")
    assert longer.returncode == 0, longer.stdout + longer.stderr
    child = steady_up.client.runs(limit=1).runs[0]
    assert child.parent is not None
    assert (child.parent.run_id, child.parent.step) == (parent.id, 12)
    assert "from step 12" in steady_up.cli("attempts", child.id).stdout
    assert "loss, steps 14 to 18" in steady_up.cli("metrics", child.id).stdout

    for option in (["--export"], ["--step", "18"]):
        fetched = steady_up.cli("download", child.id, *option, "-o", str(tmp_path / option[0]))
        assert fetched.returncode == 0, fetched.stderr
        assert "SHA-256 verified" in fetched.stdout
    assert cli("verify", str(tmp_path / "--export")).returncode == 0
    with_workers = steady_up.cli("workers").stdout.splitlines()[1].split()
    assert with_workers[0] == "local"
    assert with_workers[2:5] == ["ready", "2", "2"]


def test_ctrl_c_on_submit_watch_leaves_the_run_alone(steady_up: Up, images: Path, tmp_path: Path) -> None:
    """It says so, and how to cancel."""
    file = str(spec_file(tmp_path, images, 1000))
    command = [*CLI, "submit", file, "--watch", "--api", steady_up.url, "--key-file", str(steady_up.key_file)]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    try:
        wait_until(lambda: steady_up.client.runs(status="running").runs, "the run runs", seconds=PATIENCE_SECONDS)
        watching.send_signal(signal.SIGINT)
        said = watching.communicate(timeout=20)[0]
    finally:
        watching.kill()
    run = steady_up.client.runs(status="running").runs[0]
    assert watching.returncode == 130
    assert f"run {run.id} goes on" in said
    cancelled = steady_up.cli("cancel", run.id)
    assert cancelled.returncode == 0
    run = steady_up.wait(run, Status.CANCELLED)
    assert run.checkpoint is not None, "the job wrote one before it ended"
    assert steady_up.cli("logs", run.id, "--launcher").returncode == 0


def test_a_wrong_specification_gets_its_mistakes_and_exit_code_1(tmp_path: Path) -> None:
    """Field, value and remedy of each; no traceback; no service needed."""
    wrong = document("/data", 3, clasifier={}, optimizer={"global_batch_size": 7})
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    done = cli("submit", "wrong.yaml", "--api", "http://127.0.0.1:9", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "millionway: wrong.yaml is wrong:",
        "  clasifier: unknown key 'clasifier': did you mean 'classifier'?",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["submit", "missing.yaml"], 1, "missing.yaml cannot be read"),
        (["runs", "--api", "http://127.0.0.1:9"], 1, "the API at http://127.0.0.1:9 does not answer"),
        (["runs"], 1, "start one here with `millionway up`"),
        (["runs", "--status", "done"], 2, "'queued'"),
        (["runs", "--api", "http://[::1"], 1, "is no URL of an API"),
        (["train", "unplaceable.yaml"], 1, "this command trains on this machine alone"),
        (["train", "good.yaml", "--output", "good.yaml"], 1, "give another --output"),
        (["fly"], 2, "No such command"),
    ],
)
def test_a_mistake_on_the_command_line_gets_one_message(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    """On stderr, without a traceback."""
    noise_folder(tmp_path / "images", 96)
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(document("images", 1)))
    (tmp_path / "unplaceable.yaml").write_text(yaml.safe_dump(document("images", 1, resources={"nodes": 2})))
    done = cli(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_run_is_named_with_the_remedy(steady_up: Up) -> None:
    """As the API says it."""
    done = steady_up.cli("show", "nosuchrun0")
    assert done.returncode == 1
    assert "no run 'nosuchrun0': list the runs with `millionway runs`" in done.stderr


def test_only_one_stack_runs_in_a_state_directory(steady_up: Up) -> None:
    """The message names the process that holds it."""
    done = cli("up", "--state-dir", str(steady_up.state_dir))
    assert done.returncode == 1
    assert f"process {steady_up.process.pid}" in done.stderr


def test_a_port_that_is_taken_is_named(steady_up: Up, tmp_path: Path) -> None:
    """And nothing is left running."""
    port = steady_up.url.rpartition(":")[2]
    done = cli("up", "--state-dir", str(tmp_path / "state"), "--port", port)
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1 cannot be used" in done.stderr


def test_train_runs_the_job_without_any_service_and_goes_on_after_ctrl_c(images: Path, tmp_path: Path) -> None:
    """The same display; Ctrl-C and SIGTERM write a checkpoint; the same --output goes on from it."""
    output = tmp_path / "out"
    command = [*CLI, "train", str(spec_file(tmp_path, images, 20)), "--output", str(output)]
    for number, asked in enumerate((signal.SIGINT, signal.SIGTERM), start=1):
        first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
        spool = output / "attempts" / f"{number:04d}" / "events.jsonl"
        try:
            wait_until(lambda: spool.exists() and "progress" in spool.read_text(), "it trains", seconds=PATIENCE_SECONDS)  # noqa: B023 - called now
            first.send_signal(asked)
            said = first.communicate(timeout=60)[0]
        finally:
            first.kill()
        assert first.returncode == 1
        assert "stopped on request" in said
    last = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, cwd=REPOSITORY, check=False)
    assert last.returncode == 0, last.stdout + last.stderr
    events = [json.loads(line) for line in (output / "attempts" / "0003" / "events.jsonl").read_text().splitlines()]
    assert [event["start_step"] > 0 for event in events if event["kind"] == "started"] == [True]
    assert "step 120/120" in last.stdout
    assert (output / "export" / "model.safetensors").exists()


def test_doctor_finds_this_machine_fit(steady_up: Up) -> None:
    """Versions, devices, Redis server, API: one line each."""
    done = steady_up.cli("doctor", "--state-dir", str(steady_up.state_dir))
    assert done.returncode == 0, done.stdout
    for text in ("torch", "deepspeed", "fp32", "redis server", "its Redis answer; 1 workers"):
        assert text in done.stdout


def test_doctor_names_a_port_where_nothing_answers(tmp_path: Path) -> None:
    """With what to do; it is no obstacle to training, so the exit code stays 0."""
    done = cli("doctor", "--api", f"http://127.0.0.1:{free_port()}", "--state-dir", str(tmp_path))
    assert "does not answer" in done.stdout
    assert done.returncode == 0
