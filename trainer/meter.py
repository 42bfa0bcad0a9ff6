"""What the loop reports: loss, speed, waiting, ETA, a rank that is slow; and what all ranks must find alike: that the loss is gone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from service.spec import RunSpec
from trainer.classifier.shard import all_gather
from trainer.data.loader import Batch
from trainer.errors import BadData, NonFiniteLoss
from trainer.process import Process
from trainer.schedule import Plan
from trainer.spool import EventSpool, NullSpool
from trainer.straggler import Stragglers

MAX_UNREADABLE_SHARE = 0.01
MAX_UNREADABLE = 10
"""A run fails when more than this share, and more than this number, of the images that it saw cannot be decoded."""


class Meter:
    """Counts every step on the device; `report` waits for it, and for the other ranks.

    A rank's own time is what it spends before the step's first collective, where it would wait for its peers: loading,
    normalising, and the encoder's forward pass unless ranks talk in it (synchronised BatchNorm, ZeRO-3). The backward pass is
    not in it: DeepSpeed reduces gradients while it runs.
    """

    def __init__(self, plan: Plan, step: int, spec: RunSpec, process: Process) -> None:
        self.plan, self.views_per_image, self.process = plan, spec.augmentation.views_per_image, process
        self.first_step, self.first_time = step, time.monotonic()
        self.last_step, self.last_time = step, self.first_time
        self.loss = torch.zeros((), dtype=torch.float64, device=process.device)
        self.num_images, self.num_unreadable, self.num_read = 0, 0, 0
        self.waited = 0.0
        self.unreadable: set[str] = set()
        self.alone_in_forward = spec.zero_stage < 3 and spec.backbone.batch_norm == "per_rank"
        self.forward_seconds = 0.0
        self.forward_events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.stragglers = Stragglers(process.world_size)

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.waited += time.monotonic() - begun

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around the encoder's forward pass, and the normalisation before it."""
        begun = time.monotonic()
        if self.process.device.type == "cuda":  # the host only queues the work
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
            yield
            events[1].record()
            self.forward_events.append(events)
        else:
            yield
            self.forward_seconds += time.monotonic() - begun

    def count(self, loss: Tensor, batch: Batch) -> None:
        """One step. A non-finite loss stays non-finite in the sum, so no check is needed here."""
        self.loss += loss.detach()
        self.num_images += batch.global_size // self.views_per_image
        self.num_read += len(batch.instances)
        self.num_unreadable += len(batch.unreadable)
        self.unreadable.update(batch.unreadable)

    def report(self, spool: EventSpool | NullSpool, step: int, learning_rate: float) -> None:
        """Report the steps since the last report. Every rank calls. Raises NonFiniteLoss or BadData on every rank alike."""
        now = time.monotonic()
        steps, seconds = step - self.last_step, max(1e-9, now - self.last_time)
        mine = [0.0, self.num_unreadable, self.num_read, self._own_seconds() / steps]
        gathered_P4 = torch.tensor([mine], dtype=torch.float64, device=self.process.device)
        gathered_P4[0, 0] = self.loss
        gathered_P4 = all_gather(gathered_P4, self.process.world_size)
        loss_sum, num_unreadable, num_read, _ = gathered_P4.sum(0).tolist()
        loss = loss_sum / self.process.world_size / steps
        if not torch.isfinite(gathered_P4[:, 0]).all():
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
        for rank, own, median in self.stragglers.named(gathered_P4[:, 3].tolist(), now):
            spool.append("straggler", step=step, rank=rank, seconds=own, median_seconds=median)
        self.last_step, self.last_time = step, now
        self.loss.zero_()
        self.num_images, self.waited, self.forward_seconds = 0, 0.0, 0.0

    def _own_seconds(self) -> float:
        """Since the last report."""
        if self.forward_events:
            self.forward_events[-1][1].synchronize()
            self.forward_seconds = sum(begun.elapsed_time(ended) for begun, ended in self.forward_events) / 1000
            self.forward_events.clear()
        return self.waited + (self.forward_seconds if self.alone_in_forward else 0.0)
