"""What every row of the classifier's benchmark is given: the same rows, features and instances, functions of a seed.

Shape suffixes as in trainer/classifier: B samples, N classes, C classes of a block, D embedding size; S batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.classifier.targets import SoftTargets

BLOCK = 65_536
"""Rows drawn at a time, so that 10^7 of them need no second copy."""
CHECKED = 2
"""Steps whose memory is measured and whose results are compared with float64; the second shows errors of the momentum as well."""


@dataclass(frozen=True)
class Problem:
    """One step's size and arithmetic. The learning rate is the paper's for 4096 images."""

    classes: int
    batch: int
    embedding: int = 128
    device: str = "cpu"
    rows: str = "fp32"
    """Precision of our rows and momentum; the peers' are fp32."""
    steps: int = 5
    """Timed ones, after CHECKED others."""
    temperature: float = 0.15
    learning_rate: float = 0.48
    momentum: float = 0.9
    weight_decay: float = 1e-4
    smoothing: float = 0.2
    hardest_k: int = 50

    def targets(self, smoothed: bool) -> SoftTargets:
        return SoftTargets(self.temperature, self.smoothing if smoothed else 0.0, self.hardest_k)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """The first rows, fp32 of unit norm, block by block on the device."""
        for start in range(0, self.classes, BLOCK):
            generator = torch.Generator(self.device).manual_seed(start)
            at = slice(start, min(start + BLOCK, self.classes))
            block_CD = torch.randn(at.stop - start, self.embedding, generator=generator, device=self.device)
            yield at, F.normalize(block_CD, dim=1)

    @torch.no_grad()
    def fill(self, rows_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Write the first rows; return features [S, B, D], at a cosine of about 0.7 to their own rows, and instances [S, B]. In each
        batch two samples are of one instance."""
        generator = torch.Generator(self.device).manual_seed(1)
        size = CHECKED + self.steps, self.batch
        instance_SB = torch.randint(self.classes, size, generator=generator, device=self.device)
        instance_SB[:, -1] = instance_SB[:, 0]
        x_SBD = torch.randn(*size, self.embedding, generator=generator, device=self.device) / self.embedding**0.5
        for at, block_CD in self.blocks():
            rows_ND[at] = block_CD.to(rows_ND)
            inside_SB = (instance_SB >= at.start) & (instance_SB < at.stop)
            x_SBD[inside_SB] += block_CD[instance_SB[inside_SB] - at.start]
        return x_SBD, instance_SB
