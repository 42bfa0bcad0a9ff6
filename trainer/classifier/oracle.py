"""The plain classifier, for tests: all rows in one matrix, the B x N scores in memory, gradients by autograd."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.classifier.targets import SoftTargets


class DenseClassifier(nn.Module):
    """Eq. (1) and Eq. (3) as the paper writes them. `rows_ND` is a parameter for any torch optimiser."""

    def __init__(self, rows_ND: Tensor, targets: SoftTargets) -> None:
        super().__init__()
        self.rows_ND = nn.Parameter(rows_ND.clone())
        self.targets = targets

    def forward(self, x_BD: Tensor, instance_B: Tensor, hardest_BK: Tensor | None = None) -> Tensor:
        """Mean loss over the batch. `hardest_BK`: the hardest classes, where they are not found by the samples' scores."""
        score_BN = F.normalize(x_BD, dim=1) @ F.normalize(self.rows_ND, dim=1).T
        alpha, K = self.targets.smoothing, self.targets.hardest_k
        target_BN = F.one_hot(instance_B, len(self.rows_ND)).to(score_BN.dtype)
        if alpha > 0:
            if hardest_BK is None:
                others_BN = score_BN.detach().masked_fill(target_BN.bool(), -torch.inf)
                hardest_BK = others_BN.topk(K, dim=1).indices
            target_BN = (1 - alpha) * target_BN.scatter(1, hardest_BK, alpha / K / (1 - alpha))
        return F.cross_entropy(score_BN / self.targets.temperature, target_BN)


def nearest_classes(rows_ND: Tensor, k: int) -> Tensor:
    """[N, K]: of each class, the classes with the highest cos(w_i, w_j), itself excepted."""
    w_ND = F.normalize(rows_ND, dim=1)
    return (w_ND @ w_ND.T).fill_diagonal_(-torch.inf).topk(k, dim=1).indices
