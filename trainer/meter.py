"""What the loop reports: loss, speed, waiting, ETA; and what all ranks must agree upon: to stop, or that the loss is gone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.data.loader import Batch
from trainer.errors import BadData, NonFiniteLoss
from trainer.process import Process
from trainer.schedule import Plan
from trainer.spool import EventSpool, NullSpool

MAX_UNREADABLE_SHARE = 0.01
MAX_UNREADABLE = 10
"""A run fails when more than this share, and more than this number, of the images that it saw cannot be decoded."""


class Meter:
    """Counts every step on the device; `report` waits for it, and for the other ranks."""

    def __init__(self, plan: Plan, step: int, views_per_image: int, process: Process) -> None:
        self.plan, self.views_per_image, self.process = plan, views_per_image, process
        self.first_step, self.first_time = step, time.monotonic()
        self.last_step, self.last_time = step, self.first_time
        self.loss = torch.zeros((), dtype=torch.float64, device=process.device)
        self.num_images, self.num_unreadable, self.num_read = 0, 0, 0
        self.waited = 0.0
        self.unreadable: set[str] = set()

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.waited += time.monotonic() - begun

    def count(self, loss: Tensor, batch: Batch) -> None:
        """One step. A non-finite loss stays non-finite in the sum, so no check is needed here."""
        self.loss += loss.detach()
        self.num_images += batch.global_size // self.views_per_image
        self.num_read += len(batch.instances)
        self.num_unreadable += len(batch.unreadable)
        self.unreadable.update(batch.unreadable)

    def report(self, spool: EventSpool | NullSpool, step: int, learning_rate: float) -> bool:
        """Report the steps since the last report. Returns whether a rank was asked to stop. Every rank calls.

        Raises NonFiniteLoss or BadData on every rank alike.
        """
        now = time.monotonic()
        steps, seconds = step - self.last_step, max(1e-9, now - self.last_time)
        agreed = torch.tensor(
            [0.0, float(self.process.stop_requested), self.num_unreadable, self.num_read],
            dtype=torch.float64,
            device=self.process.device,
        )
        agreed[0] = self.loss
        if self.process.world_size > 1:
            dist.all_reduce(agreed)
        loss_sum, num_stops, num_unreadable, num_read = agreed.tolist()
        loss = loss_sum / self.process.world_size / steps
        if not torch.isfinite(agreed[0]):
            raise NonFiniteLoss(
                f"the loss became {loss} between steps {self.last_step + 1} and {step}: lower optimizer.learning_rate (now "
                f"{learning_rate:.4g}), lengthen the warm-up, or raise classifier.temperature; with precision fp16, try bf16 or fp32"
            )
        if self.unreadable:
            names = ", ".join(sorted(self.unreadable)[:5])
            spool.append("warned", message=f"{len(self.unreadable)} images cannot be decoded; a grey image stands for each: {names}")
            self.unreadable.clear()
        if num_unreadable > max(MAX_UNREADABLE, MAX_UNREADABLE_SHARE * num_read):
            raise BadData(
                f"{num_unreadable:.0f} of the {num_read:.0f} images read so far cannot be decoded: the ranks' logs name them; "
                "remove or repair them"
            )
        done, elapsed = step - self.first_step, now - self.first_time
        spool.append(
            "progress",
            step=step,
            num_steps=self.plan.num_steps,
            epoch=self.plan.epoch(step),
            num_epochs=self.plan.num_epochs,
            loss=loss,
            learning_rate=learning_rate,
            images_per_second=self.num_images / seconds,
            data_wait=min(1.0, self.waited / seconds),
            eta_seconds=elapsed / done * (self.plan.num_steps - step),
        )
        self.last_step, self.last_time = step, now
        self.loss.zero_()
        self.num_images, self.waited = 0, 0.0
        return num_stops > 0
