"""What the loop reports: loss, speed, waiting, ETA, a rank that is slow; and what all ranks must find alike: that the loss is gone."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from service.spec import RunSpec
from trainer.bad_images import BadImages
from trainer.classifier.shard import all_gather
from trainer.data.admission import Admission, warning
from trainer.data.advice import Loading
from trainer.data.loader import Batch
from trainer.errors import NonFiniteLoss
from trainer.process import Process
from trainer.schedule import Plan
from trainer.spool import EventSpool, NullSpool
from trainer.straggler import Stragglers

log = logging.getLogger(__name__)


class Meter:
    """Counts every step on the device; `report` waits for it, and for the other ranks.

    A rank's own time is what it spends before the step's first collective, where it would wait for its peers: loading,
    normalising, and the encoder's forward pass unless ranks talk in it (synchronised BatchNorm, ZeRO-3). The backward pass is
    not in it: DeepSpeed reduces gradients while it runs.
    """

    def __init__(self, plan: Plan, step: int, spec: RunSpec, process: Process, bad_images: BadImages) -> None:
        self.plan, self.spec, self.process, self.bad_images = plan, spec, process, bad_images
        self.first_step, self.first_time = step, time.monotonic()
        self.last_step, self.last_time = step, self.first_time
        self.loss = torch.zeros((), dtype=torch.float64, device=process.device)
        self.num_images = 0
        self.waited, self.read_seconds, self.load_seconds = 0.0, 0.0, 0.0
        self.advised = False
        self.admission = None if step else Admission(*self._loaders())  # a resumed run has been through it
        self.step_begun = self.first_time
        self.alone_in_forward = spec.zero_stage < 3 and spec.backbone.batch_norm == "per_rank"
        self.forward_seconds = 0.0
        self.forward_events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.stragglers = Stragglers(process.world_size)

    @contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.step_begun = time.monotonic()
        self.waited += self.step_begun - begun

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
        self.num_images += batch.global_images
        self.bad_images.count(batch.num_images + len(batch.bad), batch.bad)  # for each of them another was read
        self.read_seconds += batch.read_seconds
        self.load_seconds += batch.seconds

    def admit(self, spool: EventSpool | NullSpool, batch: Batch) -> None:
        """After each step: once after the first ones, say what is to be expected of the loading."""
        if self.admission is None:
            return
        if self.process.device.type == "cuda":
            torch.cuda.synchronize(self.process.device)
        loading = self.admission.step(batch, time.monotonic() - self.step_begun)
        if loading is None:
            return
        self.admission = None
        log.info("%s", loading.summary())
        message = warning(loading, self.spec, self.plan.num_steps)
        if message is not None:
            self.advised = True
            spool.append("warned", message=message)

    def report(self, spool: EventSpool | NullSpool, step: int, learning_rate: float) -> None:
        """Report the steps since the last report. Every rank calls. Raises NonFiniteLoss, BadData
        or StorageError on every rank alike."""
        now = time.monotonic()
        steps, seconds = step - self.last_step, max(1e-9, now - self.last_time)
        gathered_P2 = torch.tensor([[0.0, self._own_seconds() / steps]], dtype=torch.float64, device=self.process.device)
        gathered_P2[0, 0] = self.loss
        gathered_P2 = all_gather(gathered_P2, self.process.world_size)
        loss = gathered_P2[:, 0].sum().item() / self.process.world_size / steps
        if not torch.isfinite(gathered_P2[:, 0]).all():
            raise NonFiniteLoss(
                f"the loss became {loss} between steps {self.last_step + 1} and {step}: lower optimizer.learning_rate (now "
                f"{learning_rate:.4g}), lengthen the warm-up, or raise classifier.temperature; with precision fp16, try bf16 or fp32"
            )
        self.bad_images.check()
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
        for rank, own, median in self.stragglers.named(gathered_P2[:, 1].tolist(), now):
            spool.append("straggler", step=step, rank=rank, seconds=own, median_seconds=median)
        if not self.advised and self.last_step > self.first_step:  # in the first steps the loader has still to start
            message = self._loading(seconds).advice(self.spec)
            self.advised = message is not None
            if message is not None:
                spool.append("warned", message=message)
        self.last_step, self.last_time = step, now
        self.loss.zero_()
        self.num_images, self.waited, self.forward_seconds, self.read_seconds, self.load_seconds = 0, 0.0, 0.0, 0.0, 0.0

    def _loading(self, seconds: float) -> Loading:
        """Of this rank, since the last report."""
        images = self.num_images // self.process.world_size
        return Loading(images, seconds, self.waited, self.load_seconds, self.read_seconds, *self._loaders())

    def _loaders(self) -> tuple[int, int]:
        """Loader processes of this rank, and cores that are left."""
        loaders = self.process.num_loaders(self.spec)
        return loaders, self.process.num_cores - 1 - loaders

    def _own_seconds(self) -> float:
        """Since the last report."""
        if self.forward_events:
            self.forward_events[-1][1].synchronize()
            self.forward_seconds = sum(begun.elapsed_time(ended) for begun, ended in self.forward_events) / 1000
            self.forward_events.clear()
        return self.waited + (self.forward_seconds if self.alone_in_forward else 0.0)
