"""One row of the classifier's benchmark, in a process of its own: memory of the first steps, their errors, time of the others."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.classifier_heads import Head, build, needed_bytes
from benchmarks.classifier_inputs import CHECKED, Problem
from benchmarks.classifier_peers import Unavailable
from benchmarks.classifier_truth import Truth

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Bytes above those at the start. On a GPU the tensors' (PyTorch's allocator); on a CPU what is resident, as Linux counts it: by
    its own high-water mark or, where that cannot be set back, looked at every millisecond."""

    def __init__(self, device: str, from_kernel: bool = True) -> None:
        self._on_gpu, self._from_kernel = device != "cpu", from_kernel
        self._seen, self._sampler = 0, contextlib.nullcontext()
        if not self._on_gpu:
            with contextlib.suppress(OSError, AttributeError):  # glibc: what was freed goes back, so that it hides nothing
                ctypes.CDLL("libc.so.6").malloc_trim(0)
        self._start = torch.cuda.memory_allocated() if self._on_gpu else _status("VmRSS")

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Around what is measured: the peak is that of the last time."""
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
            yield
            return
        if self._from_kernel:
            try:
                CLEAR.write_text("5")
            except OSError:
                self._from_kernel = False
            else:
                yield
                return
        self._seen = 0
        done = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(done,))
        sampler.start()
        try:
            yield
        finally:
            done.set()
            sampler.join()

    def extra(self) -> int:
        if self._on_gpu:
            return torch.cuda.max_memory_allocated() - self._start
        return max(0, (_status("VmHWM") if self._from_kernel else self._seen) - self._start)

    def _sample(self, done: threading.Event) -> None:
        while not done.wait(0.001):
            self._seen = max(self._seen, _status("VmRSS"))


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def waited_seconds() -> float:
    """Of all threads together, ready to run while others had the processors (0 where Linux does not count it): others disturb the
    measurement."""
    waited = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread has ended
            waited += int(file.read_text().split()[1])
    return waited / 1e9


def measure(name: str, problem: Problem, truth_folder: Path | None, seconds: float) -> dict[str, Any]:
    """The row's figures. Timed steps end after `seconds`, with one at least. Raises `Unavailable`.

    A step on a few classes comes first: libraries, thread pools and a GPU's workspaces are nobody's extra memory. On a GPU memory is
    that of the second step, since kernels are chosen in the first.
    """
    if problem.device == "cpu" and (needed := needed_bytes(name, problem)) > 0.9 * available_bytes():
        raise Unavailable(f"takes about {needed / 1e9:.0f} GB, {available_bytes() / 1e9:.0f} GB are free")
    few = replace(problem, classes=min(problem.classes, 4096), batch=min(problem.batch, 16), steps=0)
    head = build(name, few)
    for x_BD, instance_B in _batches(head, few):
        _run(head, x_BD, instance_B)

    head = build(name, problem)
    batches = _batches(head, problem)
    memory = PeakMemory(problem.device)
    losses, extras, times = [], [], list[float]()
    for x_BD, instance_B in batches[:CHECKED]:
        with memory.watching():
            losses.append(_run(head, x_BD, instance_B))
        extras.append(memory.extra())
    truth = truth_folder and Truth.at(truth_folder, problem, "smoothed" in name)
    figures = errors(head, problem, losses, [x_BD.grad for x_BD, _ in batches[:CHECKED]], truth)
    waited = waited_seconds()
    for x_BD, instance_B in batches[CHECKED:]:
        if sum(times) < seconds:
            start = time.perf_counter()
            _run(head, x_BD, instance_B)
            times.append(time.perf_counter() - start)
    return {
        "name": name,
        "seconds": median(times),
        "seconds_min": min(times),
        "seconds_max": max(times),
        "steps": len(times),
        "waiting": (waited_seconds() - waited) / sum(times),
        "extra_bytes": max(extras) if problem.device == "cpu" else extras[-1],
        "loss": losses[0],
        **figures,
        "backend": head.backend,
    }


def _batches(head: Head, problem: Problem) -> list[tuple[Tensor, Tensor]]:
    """Fill the rows; the steps' features, each a leaf, and instances."""
    x_SBD, instance_SB = problem.fill(head.rows_ND)
    head.momentum_ND.zero_()  # touched, so that it is resident
    return [(x_BD.clone().requires_grad_(), instance_B) for x_BD, instance_B in zip(x_SBD, instance_SB, strict=True)]


def _run(head: Head, x_BD: Tensor, instance_B: Tensor) -> float:
    """A step, which ends when the device has done it; its loss."""
    loss = head.step(x_BD, instance_B)
    if loss.is_cuda:
        torch.cuda.synchronize()
    return loss.item()


@torch.no_grad()
def errors(
    head: Head, problem: Problem, losses: list[float], gradients: list[Tensor | None], truth: Truth | None
) -> dict[str, float | None]:
    """Greatest differences from float64 over the first steps; `_relative`: to the greatest update, or gradient."""
    if truth is None:
        return dict.fromkeys(("loss_error", "rows_error", "rows_error_relative", "features_error_relative"))
    error, update = 0.0, 0.0
    for at, first_CD in problem.blocks():
        true_CD = truth.rows_ND[at].to(first_CD.device)
        error = max(error, (head.rows_ND[at].double() - true_CD).abs().max().item())
        update = max(update, (first_CD.double() - true_CD).abs().max().item())
    gradient_SBD = torch.stack([gradient_BD.double().cpu() for gradient_BD in gradients if gradient_BD is not None])
    return {
        "loss_error": (torch.tensor(losses, dtype=torch.float64) - truth.loss_S).abs().max().item(),
        "rows_error": error,
        "rows_error_relative": error / update,
        "features_error_relative": ((gradient_SBD - truth.gradient_SBD).abs().max() / truth.gradient_SBD.abs().max()).item(),
    }


def products_rate(device: str, precision: str) -> float:
    """FLOP/s of square matrix products, of 8192 on a GPU and 2048 on a CPU; the median, as the steps have it."""
    (size, count), dtype = ((2048, 8), (8192, 100))[device != "cpu"], {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(count):
        start = time.perf_counter()
        torch.mm(a, b)
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / median(times)
