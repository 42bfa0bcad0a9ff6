"""Setting what ZeRO-3 has partitioned."""

from __future__ import annotations

import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state
from torch import Tensor, nn


def set_partition(parameter: nn.Parameter, value: Tensor, state: str | None = None) -> None:
    """Set this rank's part of the fp32 parameter, or of its optimiser state of that name, from the whole `value`.

    DeepSpeed's safe_set_full_* (0.19) fail for a parameter that does not divide by the number of ranks: they leave out the
    padding of the last part.
    """
    size, rank = parameter.ds_tensor.numel(), dist.get_rank()
    padded = F.pad(value.flatten(), (0, size * dist.get_world_size() - value.numel()))
    part = padded[rank * size : (rank + 1) * size]
    if state is None:
        safe_set_local_fp32_param(parameter, part)
    else:
        safe_set_local_optimizer_state(parameter, part, state)
