"""The second pass's launches, and what they read of the targets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.classifier.backend import SecondPass
from trainer.classifier.store import SGD
from trainer.classifier.targets import TargetPairs
from trainer.classifier.triton_plan import Operands, padded
from trainer.classifier.triton_row_kernels import rows_kernel

PAIRS = 16  # of targets that a program takes together


class RowPass:
    """Prepared once; then launched for all rows, or chunk by chunk.

    Probabilities are multiplied by 2^shift and by their samples' scales over the largest; what the scales have in common (`gain`) comes
    last, in fp32.
    """

    def __init__(self, operands: Operands, batch: SecondPass, scale: float, temperature: float, num_rows: int) -> None:
        """`scale` times a cosine is exp2's exponent."""
        self._operands, self._scale, self._D = operands, scale, batch.x_BD.shape[1]
        self.config = operands.configs(self._D)[1]
        pairs, device = batch.pairs, batch.x_BD.device
        self._x32_BP = padded(batch.x_BD, self.config.samples)
        self._x_BP = operands.of(self._x32_BP)
        padding = len(self._x_BP) - len(batch.x_BD)

        log_partition_B, scale_B = batch.partition_B.log2(), batch.scale_B.float()
        tiny = scale_B.new_full((1,), torch.finfo(torch.float32).tiny)
        largest_1 = torch.cat([scale_B, tiny]).amax(0, keepdim=True)
        shift_B = operands.shift - log_partition_B + (scale_B / largest_1).double().log2()
        self._gain_1 = largest_1 / (temperature * 2.0**operands.shift)
        self._shift_B = F.pad(shift_B.float(), (0, padding), value=-torch.inf)

        is_apart_T, apart_B = _apart(pairs, len(batch.x_BD))
        self._apart_B = F.pad(apart_B.int(), (0, padding), value=-1)
        exponent_T = shift_B[pairs.sample_T]
        value_T = (pairs.score_T.double() * scale + exponent_T).exp2_().masked_fill_(~is_apart_T, 0.0)
        value_T -= pairs.weight_T * (log_partition_B[pairs.sample_T] + exponent_T).exp2_()
        class_T, order_T = pairs.class_T.sort(stable=True)
        self._class_T, self._sample_T, self._value_T = class_T.int(), pairs.sample_T[order_T].int(), value_T[order_T].float()
        starts_G = torch.arange(0, num_rows + self.config.classes, self.config.classes, device=device)
        self._offset_G = torch.searchsorted(class_T, starts_G, out_int32=True)

    def launch(
        self, first: int, start: int, rows_CD: Tensor, momentum_CD: Tensor | None, gradient_CD: Tensor | None, sgd: SGD | None
    ) -> None:
        """Rows first .. first + C of the shard (a whole number of blocks from its start), which begins at class `start`: their gradient,
        in `gradient_CD`, or else a step of `sgd`."""
        config, update = self.config, gradient_CD is None
        assert first % config.classes == 0, first
        if not len(rows_CD):
            return
        sgd = sgd or SGD(0.0, 0.0, 0.0, 0)
        rows_kernel[-(-len(rows_CD) // config.classes),](
            rows_CD,
            momentum_CD,
            gradient_CD,
            self._x_BP,
            self._x32_BP,
            self._shift_B,
            self._apart_B,
            self._gain_1,
            self._offset_G,
            self._class_T,
            self._sample_T,
            self._value_T,
            len(rows_CD),
            first,
            start,
            len(self._x_BP) // config.samples,
            self._scale,
            sgd.learning_rate,
            sgd.momentum,
            sgd.weight_decay,
            sgd.step % 2**31,
            self._D,
            P=self._x_BP.shape[1],
            CLASSES=config.classes,
            SAMPLES=config.samples,
            PAIRS=PAIRS,
            UPDATE=update,
            num_warps=config.warps,
            num_stages=config.stages,
            **self._operands.products,
        )


def _apart(pairs: TargetPairs, num_samples: int) -> tuple[Tensor, Tensor]:
    """Of each sample's pairs the one with the highest score, of equal ones that of the lowest class: whether a pair is it [T], and its
    class [B], -1 where there is none."""
    highest_B = torch.full((num_samples,), -torch.inf, device=pairs.score_T.device)
    highest_B = highest_B.scatter_reduce(0, pairs.sample_T, pairs.score_T, "amax")
    is_highest_T = pairs.score_T == highest_B[pairs.sample_T]
    none = torch.iinfo(torch.int64).max
    class_B = torch.full((num_samples,), none, device=pairs.class_T.device)
    class_B = class_B.scatter_reduce(0, pairs.sample_T, pairs.class_T.masked_fill(~is_highest_T, none), "amin")
    return pairs.class_T == class_B[pairs.sample_T], class_B.masked_fill(class_B == none, -1)
