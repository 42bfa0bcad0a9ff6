"""The same training on other numbers of ranks: how far the losses drift apart, and whether the hardest classes are the same.

A small encoder (two layers) is trained with the classifier, smoothing on, for many steps; every number of ranks starts from the same
weights and rows and sees the same images. Sums over ranks are made in another order, so that losses differ in the last bits, and training
carries the differences on. Two comparisons of the K hardest classes:

exact    with one float64 product over all rows, of the very rows and features of the step; must hold for every sample of every step
alike    with those of the first number of ranks at the same step, whose rows and features have drifted by then
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.counted_group import on_counted_ranks
from trainer.classifier.build import random_rows
from trainer.classifier.sharded import ShardedClassifier
from trainer.classifier.targets import SoftTargets

N, D, B, INPUT, HIDDEN, RATE = 2000, 32, 64, 32, 64, 0.05
TARGETS = SoftTargets(0.1, 0.2, 10)
LOSS_TOLERANCE = 1e-3
"""Of a loss near 5, after any number of steps up to 1,000."""


def compare(steps: int, ranks: list[int]) -> list[dict[str, Any]]:
    """One result for each number of ranks, also printed: against the first of them."""
    print(f"N = {N}, D = {D}, B = {B}, K = {TARGETS.hardest_k}, alpha = {TARGETS.smoothing}, {steps} steps; against {ranks[0]} rank(s)")
    print("  ranks  first loss   last loss   largest |d loss|  at step     exact  alike: samples     steps  first unlike step")
    results: list[dict[str, Any]] = []
    first: dict[str, Any] | None = None
    for world_size in ranks:
        run = _join(on_counted_ranks(world_size, train, steps))
        first = first or run
        drift_S = (run["losses"] - first["losses"]).abs()
        alike_SB = (run["hardest"] == first["hardest"]).all(2)
        row = {
            "name": "ranks",
            "ranks": world_size,
            "steps": steps,
            "first_loss": float(run["losses"][0]),
            "last_loss": float(run["losses"][-1]),
            "loss_drift": float(drift_S.max()),
            "loss_drift_at": int(drift_S.argmax()),
            "exact": run["exact"],
            "first_unlike_step": int((~alike_SB.all(1)).double().argmax()) if not alike_SB.all() else None,
            "alike_steps": float(alike_SB.all(1).double().mean()),
            "alike_samples": float(alike_SB.double().mean()),
        }
        results.append(row)
        print(
            f"{world_size:7} {row['first_loss']:11.4f} {row['last_loss']:11.4f} {row['loss_drift']:18.2e} {row['loss_drift_at']:8} "
            f"{row['exact']:9.3%} {row['alike_samples']:15.3%} {row['alike_steps']:9.2%} {row['first_unlike_step']!s:>18}",
            flush=True,
        )
    return results


def fails(row: dict[str, Any]) -> bool:
    return row["loss_drift"] > LOSS_TOLERANCE or row["exact"] < 1


def train(steps: int) -> dict[str, Any]:
    """On one rank: losses [S] (float64) of its samples, the hardest classes that lie in its shard, and how many sets were exact."""
    rank, P = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(INPUT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, D))
    optimizer = torch.optim.SGD(encoder.parameters(), lr=RATE, momentum=0.9)
    classifier = ShardedClassifier(N, D, TARGETS, capacity=B // P, momentum=0.9, weight_decay=1e-4)
    shard = classifier.shard
    classifier.rows_nD.copy_(random_rows(shard.start, shard.stop, D, seed=0))
    image_ND = torch.randn(N, INPUT)
    mine = slice(rank * (B // P), (rank + 1) * (B // P))
    losses, found, exact = [], [], 0
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        instance_B = torch.randint(N, (B,), generator=generator)
        view_B = image_ND[instance_B] + 0.3 * torch.randn(B, INPUT, generator=generator)
        optimizer.zero_grad()
        x_bD = encoder(view_B[mine])
        loss = classifier(x_bD, instance_B[mine])
        loss.backward()
        pairs = classifier._pending[-1].pairs
        code_T = pairs.sample_T * N + pairs.class_T + shard.start
        found.append(code_T)
        exact += _num_exact(classifier, x_bD.detach(), instance_B, code_T)
        for parameter in encoder.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= P
        optimizer.step()
        classifier.step(4 * RATE, step)
        losses.append(loss.item() / P)
    return {"losses": torch.tensor(losses, dtype=torch.float64), "found": found, "exact": exact / (steps * B)}


def _num_exact(classifier: ShardedClassifier, x_bD: Tensor, instance_B: Tensor, code_T: Tensor) -> int:
    """Of how many samples the pairs of all ranks are own class and K hardest by one float64 product over all rows."""
    P = dist.get_world_size()
    row_ps = [torch.empty(len(classifier.shard.of(rank)), D) for rank in range(P)]
    dist.all_gather(row_ps, classifier.rows_nD)
    x_ps = [torch.empty_like(x_bD) for _ in range(P)]
    dist.all_gather(x_ps, F.normalize(x_bD, dim=1))
    score_BN = (torch.cat(x_ps).double() @ F.normalize(torch.cat(row_ps).double(), dim=1).T).float()
    score_BN[torch.arange(B), instance_B] = torch.inf  # the own class comes first
    # A stable sort of classes in ascending order: of equal scores the lower class.
    expected_BK = score_BN.sort(dim=1, descending=True, stable=True).indices[:, : TARGETS.hardest_k + 1]
    is_expected_BN = torch.zeros(B, N, dtype=torch.bool).scatter_(1, expected_BK, True)
    mine_BN = torch.zeros(B, N, dtype=torch.int32)
    mine_BN.view(-1)[code_T] = 1
    dist.all_reduce(mine_BN)
    return int((mine_BN.bool() == is_expected_BN).all(1).sum())


def _join(ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Losses of the global batch [S], and each sample's classes in ascending order [S, B, K + 1]."""
    losses = torch.stack([rank["losses"] for rank in ranks]).sum(0)
    steps = [torch.cat(parts).sort().values.view(B, -1) for parts in zip(*(rank["found"] for rank in ranks), strict=True)]
    return {"losses": losses, "hardest": torch.stack(steps), "exact": min(rank["exact"] for rank in ranks)}
