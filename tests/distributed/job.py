"""A whole attempt as workers run it: one launcher for each node, here all on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file

from service.launch import Launch, free_port, job_command, job_environment
from service.layout import RunDir, write_whole
from service.spec import RunSpec, merge
from trainer.checkpoint_files import list_checkpoints

NUM_STEPS = 24


def spec_of(images: Path, **changes: Any) -> RunSpec:
    """A tiny network for `NUM_STEPS` steps of 20 images on two ranks."""
    base = {
        "preset": "demo",
        "data": {"path": str(images), "image_size": 16},
        "backbone": {"args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]}},
        "classifier": {"embedding_size": 16, "hardest_k": 5},
        "optimizer": {"global_batch_size": 20},
        "schedule": {"steps": NUM_STEPS, "warmup_steps": 4},
        "log_every_steps": 1,
    }
    return RunSpec.model_validate(merge(base, changes))


class Job:
    """One attempt: on one node with all ranks of `spec` or, with `nodes`, as many ranks on each of so many."""

    started: ClassVar[list[Job]] = []
    """In this test: what it leaves behind when it fails would take the cores of those after it."""

    def __init__(
        self,
        spec: RunSpec,
        directory: Path,
        attempt: int = 1,
        *,
        nodes: int = 1,
        ranks_per_node: int | None = None,
        start_from: Path | None = None,
        missing_nodes: tuple[int, ...] = (),
    ) -> None:
        self.run_dir, self.attempt = RunDir(directory), RunDir(directory).attempt(attempt)
        self.attempt.path.mkdir(parents=True)
        write_whole(self.run_dir.spec, spec.model_dump_json())
        port = free_port()
        self.launchers: list[subprocess.Popen[bytes]] = []
        self.started.append(self)
        for node in sorted(set(range(nodes)) - set(missing_nodes)):
            launch = Launch(
                directory,
                attempt,
                num_nodes=nodes,
                node_rank=node,
                ranks_per_node=ranks_per_node or spec.resources.ranks_per_node,
                master_port=port,
                start_from=start_from,
            )
            with self.attempt.launcher_log(node).open("wb") as log:
                self.launchers.append(
                    subprocess.Popen(job_command(launch), env=job_environment(spec, launch), stdout=log, stderr=log, start_new_session=True)
                )

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        text = self.attempt.events.read_text() if self.attempt.events.exists() else ""
        events = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [event for event in events if kind in (None, event["kind"])]

    def until(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert all(launcher.poll() is None for launcher in self.launchers), self.logs()
            assert time.monotonic() < deadline, f"not in time: {what}\n{self.logs()}"
            time.sleep(0.01)

    def until_step(self, step: int) -> None:
        self.until(lambda: any(event["step"] >= step for event in self.events("progress")), f"step {step}")

    def signal_at_step(self, step: int, number: int) -> None:
        """Send a signal to all the job's processes once it reports `step`."""
        self.until_step(step)
        for launcher in self.launchers:
            os.killpg(launcher.pid, number)

    def wait(self, seconds: float = 90) -> int:
        """Exit code of the first launcher that did not end with 0, else 0. None is left afterwards."""
        try:
            codes = [launcher.wait(timeout=seconds) for launcher in self.launchers]
        finally:
            self.kill()
        return next((code for code in codes if code), 0)

    def kill(self) -> None:
        for launcher in self.launchers:
            if launcher.poll() is None:
                os.killpg(launcher.pid, signal.SIGKILL)  # the ranks die with it
                launcher.wait(timeout=10)

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()}" for path in sorted(self.attempt.path.glob("*.log")))


def failure(job: Job) -> dict[str, Any]:
    """The first thing that the job says of its failure."""
    assert job.wait() != 0
    return job.events("failed")[0]


def weights(directory: Path, step: int = NUM_STEPS) -> dict[str, torch.Tensor]:
    """Everything that the last checkpoint, which must be of `step`, and the export hold."""
    (*_, last) = list_checkpoints(RunDir(directory).checkpoints)
    assert last.step == step
    files = [*sorted(last.path.glob("*.safetensors")), *RunDir(directory).export.glob("model.safetensors")]
    return {f"{path.name}/{name}": tensor for path in files for name, tensor in load_file(path).items()}


def differing(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not the same bits."""
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.equal(found[name], expected[name])]
