"""The real stack as `millionway up` starts it, the real trainer, and images that train in seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from service import processes
from service.client import ApiClient
from service.lifecycle import Status
from service.runs import Run
from tests.conftest import wait_until

REPOSITORY = Path(__file__).parents[2]
CLI = [sys.executable, "-m", "deploy.cli"]
LEASE_SECONDS = 3.0
PATIENCE_SECONDS = 120.0


class Up:
    """`millionway up` in a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.state_dir, self.log = directory / "state", directory / "up.log"
        environment = {**os.environ, "MILLIONWAY_LEASE_SECONDS": str(LEASE_SECONDS)}
        command = [*CLI, "up", "--state-dir", str(self.state_dir), "--slots", "2"]
        self.process = processes.spawn(command, environment=environment, log=self.log)
        wait_until(self._is_up, f"the stack is up: {self.log}", seconds=90)
        self.url: str = self.record()["url"]
        self.key_file = self.state_dir / "keys" / "admin.key"
        self.key = self.key_file.read_text().strip()
        self.client = ApiClient(self.url, key=self.key)

    def _is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return "millionway is up" in self.log.read_text()

    def record(self) -> Any:
        return json.loads((self.state_dir / "stack.json").read_text())

    def wait(self, run: Run, *statuses: Status) -> Run:
        wait_until(lambda: self.client.run(run.id).status in statuses, f"run {run.id} is {'/'.join(statuses)}", seconds=PATIENCE_SECONDS)
        return self.client.run(run.id)

    def cli(self, *arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
        return cli(*arguments, "--api", self.url, "--key-file", str(self.key_file), cwd=cwd)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(90)
        self.client.__exit__(None, None, None)


def cli(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """The command line as a person calls it, to its end."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [*CLI, *arguments], capture_output=True, text=True, timeout=PATIENCE_SECONDS, cwd=cwd, env=environment, check=False
    )


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """A stack of the test's own, for tests that break it."""
    stack = Up(tmp_path)
    try:
        yield stack
    finally:
        stack.close()


@pytest.fixture(scope="session")
def steady_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One stack for all tests that leave it as it was."""
    stack = Up(tmp_path_factory.mktemp("steady"))
    try:
        yield stack
    finally:
        stack.close()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 images of 16 pixels in two classes, stripes along and stripes across."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(96):
        label = number % 2
        waves = np.sin(np.arange(16) * random.uniform(0.8, 1.6) + random.uniform(0, 6))
        stripes = np.tile(waves, (16, 1)) if label else np.tile(waves, (16, 1)).T
        pixels = np.clip(stripes[..., None] * 80 + 128 + random.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
        folder = root / ("along", "across")[label]
        folder.mkdir(exist_ok=True)
        assert cv2.imwrite(str(folder / f"{number:03d}.png"), pixels)
    return root


def document(images: Path | str, epochs: int, **sections: Any) -> dict[str, Any]:
    """A specification of 6 steps an epoch on two ranks, as a person would write it."""
    return {
        "name": "tiny",
        "data": {"path": str(images), "image_size": 16},
        "backbone": {"name": "resnet18", "args": {"layers": [1, 1, 1, 0], "channels": [8, 16, 16, 16]}},
        "classifier": {"embedding_size": 16, "hardest_k": 5},
        "optimizer": {"global_batch_size": 16},
        "schedule": {"epochs": epochs},
        "resources": {"ranks_per_node": 2, "device": "cpu"},
        "log_every_steps": 2,
        **sections,
    }
