"""`make demo`, after the installation, on a folder of a person's own."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from service import processes
from tests.conftest import wait_until
from tests.e2e.conftest import PATIENCE_SECONDS
from tests.process import descendants, is_running

pytestmark = pytest.mark.e2e

DEMO = [sys.executable, "-m", "deploy.demo"]


def test_the_demonstration_takes_any_folder_and_leaves_no_process(images: Path, tmp_path: Path) -> None:
    """Its record holds the accuracies, and paths that exist."""
    state, log = tmp_path / "state", tmp_path / "demo.log"
    command = [*DEMO, "--data", str(images), "--state-dir", str(state)]
    demo = processes.spawn(command, environment=os.environ, log=log)
    wait_until(lambda: (state / "stack.json").exists(), "the stack is up", seconds=90)
    pids = json.loads((state / "stack.json").read_text())["pids"].values()
    assert demo.wait(PATIENCE_SECONDS) == 0, log.read_text()
    assert [pid for pid in pids if is_running(pid)] == []

    record = json.loads((state / "demo.json").read_text())
    assert list(record) == ["knn_pixels", "knn_random", "knn_trained", "seconds", "run_id", "checkpoint", "export"]
    assert all(0 <= record[name] <= 100 for name in ("knn_pixels", "knn_random", "knn_trained"))
    assert Path(record["checkpoint"]).is_dir()
    assert (Path(record["export"]) / "model.safetensors").is_file()
    for text in ("raw pixels", "random encoder", "trained encoder", record["checkpoint"], record["export"], record["run_id"], "curl "):
        assert text in log.read_text()


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_on_the_demonstration_stops_all_that_it_started(images: Path, tmp_path: Path, times: int) -> None:
    """And its run is cancelled, so that it is not in the way of the next one; a second Ctrl-C waits for no grace."""
    state, log = tmp_path / "state", tmp_path / "demo.log"
    demo = processes.spawn([*DEMO, "--data", str(images), "--state-dir", str(state)], environment=os.environ, log=log)
    wait_until(lambda: "POST" in log.read_text(), "the run is submitted", seconds=90)
    pids = descendants(demo.pid)
    assert len(pids) >= 4
    demo.send_signal(signal.SIGINT)
    if times == 2:
        wait_until(lambda: "stopping" in log.read_text(), "the first is heard")
        time.sleep(0.5)  # the run is cancelled, the stack is ending
        demo.send_signal(signal.SIGINT)
    assert demo.wait(90) == 130
    assert "everything it started is stopped" in log.read_text()
    wait_until(lambda: not any(map(is_running, pids)), "all processes are gone", seconds=1)
    assert not (state / "demo.json").exists()


def test_a_wrong_data_path_gets_one_message(tmp_path: Path) -> None:
    """Before anything is started."""
    log = tmp_path / "demo.log"
    demo = processes.spawn([*DEMO, "--data", "/nowhere", "--state-dir", str(tmp_path / "state")], environment=os.environ, log=log)
    assert demo.wait(60) == 1
    assert "DATA=/nowhere" in log.read_text()
    assert len(log.read_text().splitlines()) == 1
