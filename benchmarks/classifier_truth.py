"""The same steps in float64, from the equations, a block of classes at a time: what the benchmark's errors are against.

The results lie in files that every measuring process maps, so that the truth is computed once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.classifier_inputs import CHECKED, Problem
from trainer.classifier.targets import EPS

SCORES = 1 << 24
"""Scores of a block; there are about four tensors of this size, 128 MB each."""


@dataclass
class Truth:
    """Losses [CHECKED], gradients towards the features [CHECKED, B, D] and the rows after the steps [N, D], float64, on the CPU."""

    loss_S: Tensor
    gradient_SBD: Tensor
    rows_ND: Tensor

    @classmethod
    def at(cls, folder: Path, problem: Problem, smoothed: bool) -> Truth:
        """The files of `folder`, made if they are not there."""
        kind, D = "smoothed" if smoothed else "plain", problem.embedding

        def mapped(name: str, *shape: int) -> Tensor:
            size = torch.Size(shape).numel()
            return torch.from_file(str(folder / f"{kind}-{name}"), shared=True, size=size, dtype=torch.float64).view(shape)

        return cls(mapped("loss", CHECKED), mapped("gradient", CHECKED, problem.batch, D), mapped("rows", problem.classes, D))


@torch.no_grad()
def write_truth(folder: Path, problem: Problem, smoothed: bool) -> None:
    truth = Truth.at(folder, problem, smoothed)
    momentum_ND = torch.zeros_like(truth.rows_ND)
    x_SBD, instance_SB = problem.fill(truth.rows_ND)
    for step in range(CHECKED):
        truth.loss_S[step], truth.gradient_SBD[step] = _step(
            truth.rows_ND, momentum_ND, x_SBD[step].double(), instance_SB[step], problem, smoothed
        )


def _step(
    rows_ND: Tensor, momentum_ND: Tensor, x_BD: Tensor, instance_B: Tensor, problem: Problem, smoothed: bool
) -> tuple[Tensor, Tensor]:
    """Loss and gradient of x; rows and momentum (on the CPU) are updated as torch.optim.SGD does it."""
    targets = problem.targets(smoothed)
    tau, K, B, device = targets.temperature, targets.num_hardest, len(x_BD), x_BD.device
    length = max(256, SCORES // B)
    chunks = [slice(start, min(start + length, len(rows_ND))) for start in range(0, len(rows_ND), length)]
    norm_B1 = x_BD.norm(dim=1, keepdim=True).clamp_min(EPS)
    unit_BD = x_BD / norm_B1
    partition_B = x_BD.new_zeros(B)
    pull_BD = torch.zeros_like(x_BD)
    best_BK, class_BK = x_BD.new_empty(B, 0), instance_B.new_empty(B, 0)
    for at in chunks:
        w_CD = F.normalize(rows_ND[at].to(device), dim=1)
        score_BC = unit_BD @ w_CD.T
        if K:
            other_BC = score_BC.clone()
            mine = _inside(instance_B, at)
            other_BC[mine, instance_B[mine] - at.start] = -torch.inf
            found = other_BC.topk(min(K, at.stop - at.start), dim=1)
            best_BK, class_BK = torch.cat([best_BK, found.values], 1), torch.cat([class_BK, found.indices + at.start], 1)
            best_BK, place_BK = best_BK.topk(min(K, best_BK.shape[1]), dim=1)
            class_BK = class_BK.gather(1, place_BK)
        exp_BC = score_BC.div_(tau).exp_()
        partition_B += exp_BC.sum(1)
        pull_BD += exp_BC @ w_CD

    class_BT = torch.cat([instance_B[:, None], class_BK], 1)
    weight_T = x_BD.new_tensor([1 - targets.smoothing if K else 1.0] + [targets.smoothing / max(K, 1)] * K)
    target_BTD = F.normalize(rows_ND[class_BT.cpu()].to(device), dim=2)
    score_BT = (target_BTD @ unit_BD[:, :, None])[:, :, 0]
    loss = (partition_B.log() - score_BT @ weight_T / tau).mean()
    gradient_BD = (pull_BD / partition_B[:, None] - torch.einsum("t,btd->bd", weight_T, target_BTD)) / (tau * B)
    gradient_BD = (gradient_BD - unit_BD * (gradient_BD * unit_BD).sum(1, keepdim=True)) / norm_B1

    weight_BT = weight_T.expand_as(score_BT)
    for at in chunks:
        row_CD = rows_ND[at].to(device)
        norm_C1 = row_CD.norm(dim=1, keepdim=True).clamp_min(EPS)
        w_CD = row_CD / norm_C1
        error_BC = (unit_BD @ w_CD.T).div_(tau).exp_().div_(partition_B[:, None])
        sample_T, place_T = _inside(class_BT, at).nonzero(as_tuple=True)
        error_BC[sample_T, class_BT[sample_T, place_T] - at.start] -= weight_BT[sample_T, place_T]
        step_CD = error_BC.T @ unit_BD / (tau * B)
        step_CD = (step_CD - w_CD * (step_CD * w_CD).sum(1, keepdim=True)) / norm_C1 + problem.weight_decay * row_CD
        momentum_ND[at] = problem.momentum * momentum_ND[at] + step_CD.cpu()
        rows_ND[at] -= problem.learning_rate * momentum_ND[at]
    return loss, gradient_BD


def _inside(class_id: Tensor, at: slice) -> Tensor:
    return (class_id >= at.start) & (class_id < at.stop)
