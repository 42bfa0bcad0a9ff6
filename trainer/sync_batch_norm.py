"""BatchNorm over the global batch, on any device and backend.

PyTorch's SyncBatchNorm runs on GPUs only. This one needs nothing but an all-gather and an all-reduce, so that what trains on
two CPU ranks over gloo is what trains on GPUs. Ranks may hold different numbers of images.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(_BatchNorm):
    """[b, C, ...] -> [b, C, ...], normalised by the statistics of all ranks' inputs together while training.

    Takes the place of nn.BatchNorm1d to 3d and, with `drop` and `act`, of timm's BatchNormAct2d.
    """

    def __init__(self, source: _BatchNorm) -> None:
        super().__init__(source.num_features, source.eps, source.momentum, source.affine, source.track_running_stats)
        self.drop: nn.Module = getattr(source, "drop", nn.Identity())
        self.act: nn.Module = getattr(source, "act", nn.Identity())
        self._parameters.update(source._parameters)
        self._buffers.update(source._buffers)
        self.train(source.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return self.act(self.drop(super().forward(input)))
        output, mean_C, variance_C, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        if self.running_mean is not None:
            self.num_batches_tracked.add_(1)
            share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), share)
            unbiased_C = variance_C * (count / (count - 1).clamp(min=1))
            self.running_var.lerp_(unbiased_C.to(self.running_var.dtype), share)
        return self.act(self.drop(output))


def synchronise_batch_norm(module: nn.Module) -> nn.Module:
    """`module` with every BatchNorm replaced, sharing its parameters and buffers; names in the state dict stay."""
    if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm | SyncBatchNorm):
        return SyncBatchNorm(module)
    for name, child in module.named_children():
        setattr(module, name, synchronise_batch_norm(child))
    return module


class _Normalise(torch.autograd.Function):
    """Forward: one all-gather of mean, variance and count per channel. Backward: one all-reduce of two sums per channel.

    Gradients of weight and bias are this rank's, to be averaged with all the others.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        over = [0, *range(2, x.dim())]
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # sums over a batch overflow half precision
        count = x.numel() // x.size(1)
        if count:
            variance_C, mean_C = torch.var_mean(wide, over, correction=0)
        else:  # a rank without images in an epoch's last step
            variance_C = mean_C = wide.new_zeros(x.size(1))
        local = torch.cat([mean_C, variance_C, wide.new_full((1,), count)])
        gathered = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, local)
        means_PC, variances_PC, counts_P1 = torch.stack(gathered).split([x.size(1), x.size(1), 1], dim=1)
        # Means first, then deviations from the joint mean: E[x^2] - E[x]^2 would cancel.
        total = counts_P1.sum()
        mean_C = (counts_P1 * means_PC).sum(0) / total
        variance_C = (counts_P1 * (variances_PC + (means_PC - mean_C) ** 2)).sum(0) / total
        shape = [1, -1] + [1] * (x.dim() - 2)
        scale_C = torch.rsqrt(variance_C + eps)
        normalised = (wide - mean_C.view(shape)) * scale_C.view(shape)
        ctx.save_for_backward(normalised, weight, scale_C, total)
        ctx.shape, ctx.over = shape, over
        output = normalised if weight is None else normalised * weight.view(shape)
        output = output if bias is None else output + bias.view(shape)
        ctx.mark_non_differentiable(mean_C, variance_C, total)
        return output.to(x.dtype), mean_C, variance_C, total

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        normalised, weight, scale_C, total = ctx.saved_tensors
        wide = dy.to(normalised.dtype)
        sums_2C = torch.stack([wide.sum(ctx.over), (wide * normalised).sum(ctx.over)])
        dbias_C, dweight_C = sums_2C.clone()
        dist.all_reduce(sums_2C)
        mean_dy_C, mean_dy_x_C = sums_2C / total  # the statistics are of all ranks' inputs, so all ranks' gradients enter
        factor_C = scale_C if weight is None else scale_C * weight
        dx = wide - mean_dy_C.view(ctx.shape) - normalised * mean_dy_x_C.view(ctx.shape)
        dx = (dx * factor_C.view(ctx.shape)).to(dy.dtype)
        if weight is None:
            return dx, None, None, None
        return dx, dweight_C.to(weight.dtype), dbias_C.to(weight.dtype), None
