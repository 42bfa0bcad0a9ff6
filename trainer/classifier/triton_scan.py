"""The first pass's launches: one chunk of classes at a time, partial results summed in a fixed order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.classifier.triton_plan import Operands, num_processors, padded
from trainer.classifier.triton_scan_kernels import open_kernel, pair_kernel, scan_kernel, unit_kernel

OPEN_SAMPLES, PAIRS, ROWS = 32, 16, 16  # of a program's tile


class ChunkScan:
    """Partition (fp64) and pull (fp32) of the chunks so far, without the own classes."""

    def __init__(self, operands: Operands, x_BD: Tensor, local_B: Tensor, scale: float, with_maxima: bool) -> None:
        """`local_B`: the own class, counted from the shard's first; negative is none. `scale` times a cosine is exp2's exponent."""
        B, self._D = x_BD.shape
        self._operands, self._config = operands, operands.configs(self._D)[0]
        self._scale, self._with_maxima = scale, with_maxima
        self._x_BD = x_BD.contiguous()
        self._x_BP = operands.of(padded(x_BD, self._config.samples))
        self._own_B = F.pad(local_B.int(), (0, len(self._x_BP) - B), value=-1)
        self.partition_B, self.pull_BD = x_BD.new_zeros(B, dtype=torch.float64), torch.zeros_like(self._x_BD)
        self._tiles = len(self._x_BP) // self._config.samples
        self._most_splits = -(-2 * num_processors(x_BD.device) // max(1, self._tiles))  # two programs for each processor

    @property
    def group(self) -> int:
        """Classes of which one maximum is taken."""
        return self._config.classes

    def add(self, first: int, rows_CD: Tensor) -> Tensor:
        """Classes first .. first + C in their storage precision. Returns the highest cosine of each group of classes, [G, B], if wanted;
        the rows are used until the next call."""
        config, (samples, P), device = self._config, self._x_BP.shape, rows_CD.device
        B, count = len(self.partition_B), len(rows_CD)
        blocks = -(-count // config.classes)
        self._first, self._rows_CD = first, rows_CD
        self._unit_CP = torch.empty(blocks * config.classes, P, dtype=self._operands.dtype, device=device)
        unit_kernel[len(self._unit_CP) // ROWS,](rows_CD, self._unit_CP, count, self._D, P=P, ROWS=ROWS, **self._operands.rounding)

        splits = max(1, min(blocks, self._most_splits))
        partition_SB, highest_SB = (torch.empty(splits, samples, device=device) for _ in range(2))
        pull_SBP = torch.empty(splits, samples, P, device=device)
        maximum_GB = torch.empty(blocks if self._with_maxima else 0, samples, device=device)
        scan_kernel[self._tiles, splits](
            self._x_BP,
            self._unit_CP,
            self._own_B,
            partition_SB,
            pull_SBP,
            highest_SB,
            maximum_GB,
            first,
            count,
            blocks,
            samples,
            self._scale,
            P=P,
            SAMPLES=config.samples,
            CLASSES=config.classes,
            SHIFT=self._operands.shift,
            MAXIMA=self._with_maxima,
            num_warps=config.warps,
            num_stages=config.stages,
            **self._operands.products,
        )
        partition_SB = partition_SB.double()
        if self._operands.shift:
            unshift_SB = highest_SB - self._operands.shift
            partition_SB *= unshift_SB.double().exp2_()
            pull_SBP *= unshift_SB.exp2_()[:, :, None]
        self.partition_B += partition_SB.sum(0)[:B]
        self.pull_BD += pull_SBP.sum(0)[:B, : self._D]
        return maximum_GB[:, :B]

    def open(self, group_T: Tensor, sample_T: Tensor) -> Tensor:
        """Scores [T, classes of a group] of groups of the chunk, in ascending order, and samples; -inf where a class is none."""
        classes, P = self._config.classes, self._x_BP.shape[1]
        groups = len(self._unit_CP) // classes
        offset_G = torch.searchsorted(group_T, torch.arange(groups + 1, device=group_T.device), out_int32=True)
        score_TC = torch.empty(len(group_T), classes, device=group_T.device)
        open_kernel[groups,](
            self._x_BP,
            self._unit_CP,
            self._own_B,
            offset_G,
            sample_T.int(),
            score_TC,
            self._first,
            len(self._rows_CD),
            P=P,
            SAMPLES=OPEN_SAMPLES,
            CLASSES=classes,
            PRECISION="ieee",
        )
        return score_TC

    def exact(self, class_T: Tensor, sample_T: Tensor) -> Tensor:
        """targets.score_pairs of the chunk's classes, but for the order of the sums in fp64."""
        T, P = len(class_T), self._x_BP.shape[1]
        score_T = torch.empty(T, device=class_T.device)
        if T:
            class_T = class_T - self._first
            pair_kernel[-(-T // PAIRS),](self._rows_CD, self._x_BD, class_T, sample_T, score_T, T, self._D, P=P, PAIRS=PAIRS)
        return score_T
