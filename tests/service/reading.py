"""An API with a worker that is no process: what the test lets it hold and report is what there is to read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client import ApiClient
from service.lifecycle import Status
from service.protocol import EventBatch, ExitReport, Held, Offer, Poll, PollReply
from service.runs import Run
from service.settings import Settings
from service.spec import parse_spec
from tests.conftest import emptied, running_api, wait_until

SEGMENT_BYTES = 1000
"""Of a log; three are kept."""


class Reading:
    """The API, its client with an admin's key, and what a worker of two slots does."""

    def __init__(self, url: str, key: str, directory: Path) -> None:
        self.url, self.key, self.directory, self.runs_dir = url, key, directory, directory / "runs"
        self.client = ApiClient(url, key=key, retries=0)
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=10)
        self._polls, self._seq, self._held = 0, 0, list[Held]()

    def submit(self, **sections: Any) -> Run:
        return self.client.submit(
            parse_spec({"preset": "demo", "data": {"path": "/data/images"}, "resources": {"ranks_per_node": 2}, **sections})
        )

    def started(self, **sections: Any) -> Run:
        """A new run that a worker holds and trains."""
        run = self.submit(**sections)
        self.take()
        self.report(run, self.event("started", num_images=100, num_steps=50, start_step=0, world_size=2, device="cpu"))
        return self.client.run(run.id)

    def take(self) -> None:
        """Hold the attempt that is offered first."""
        offers: list[Offer] = []
        wait_until(lambda: offers.extend(self.poll()) or offers, "an attempt is offered")
        self._held = [Held(run_id=offers[0].run_id, attempt=offers[0].attempt, master_port=29500)]
        self._seq = 0
        self.poll()

    def poll(self) -> list[Offer]:
        return self._poll(0.0).offers

    def wait_for_news(self, seconds: float) -> list[int]:
        """The pins of what it holds, as its poll answers that waits; it knows them from then on."""
        [told] = self._poll(seconds).instructions
        self._held = [self._held[0].model_copy(update={"pins": told.pins})]
        return told.pins

    def _poll(self, wait_seconds: float) -> PollReply:
        self._polls += 1
        about = {"host": "node-1", "address": "127.0.0.1", "slots": 2, "device": "cpu", "storage": "s", "incarnation": "0123456789abcdef"}
        return self.client.poll("w1", Poll(number=self._polls, held=self._held, wait_seconds=wait_seconds, **about))

    def report(self, run: Run, *events: dict[str, Any]) -> None:
        attempt = self._held[0].attempt
        for start in range(0, len(events), 1000):
            self.client.events(run.id, attempt, EventBatch(events=list(events[start : start + 1000])))

    def end(self, run: Run, outcome: str = "finished", reason: str = "all steps done") -> None:
        attempt, self._held = self._held[0].attempt, []
        self.client.exit(run.id, attempt, ExitReport(worker="w1", outcome=outcome, reason=reason))  # type: ignore[arg-type]
        self.poll()

    def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._seq += 1
        return {"kind": kind, "seq": self._seq, "time": 1.0, **fields}

    def progress(self, step: int, loss: float = 4.5, **fields: Any) -> dict[str, Any]:
        values = {"num_steps": 50, "epoch": step / 10, "num_epochs": 5, "learning_rate": 0.1, "images_per_second": 99.5, "data_wait": 0.25}
        return self.event("progress", **{**values, "step": step, "loss": loss, "eta_seconds": 12.0, **fields})

    def checkpointed(self, step: int, **fields: Any) -> dict[str, Any]:
        path = f"/runs/x/checkpoints/step-{step:09d}"
        return self.event("checkpointed", step=step, epoch=step / 10, path=path, num_bytes=1000, **fields)

    def wait(self, run: Run, status: Status) -> None:
        wait_until(lambda: self.client.run(run.id).status == status, f"the run is {status}")


@pytest.fixture
def api(redis_session: str, tmp_path: Path) -> Iterator[Reading]:
    settings = Settings(
        redis_url=emptied(f"{redis_session}/2"),
        state_dir=tmp_path,
        runs_dir=tmp_path / "runs",
        keys_dir=tmp_path / "keys",
        max_log_bytes=3 * SEGMENT_BYTES,
        rate_limit=10_000,
    )
    key_file = tmp_path / "keys" / "admin.key"
    with running_api(settings) as url:
        wait_until(key_file.exists, "the first keys are there")
        reading = Reading(url, key_file.read_text().strip(), tmp_path)
        with reading.client, reading.http:
            yield reading
