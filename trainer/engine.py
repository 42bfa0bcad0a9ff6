"""The encoder under DeepSpeed: configuration, optimiser, and its whole state in and out, for every ZeRO stage."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from service.sizing import REDUCE_BUCKET
from service.spec import RunSpec
from trainer.classifier import InstanceClassifier, Zero3Classifier
from trainer.encoder import Encoder
from trainer.partition import set_partition

MOMENTUM = "momentum_buffer"  # torch.optim.SGD's name for it


class Model(nn.Module):
    """What the engine owns: the encoder and, with parallelism zero3, the classifier's rows.

    With bf16, products are in bf16 (autocast) and weights, BatchNorm and the engine in fp32; no loss scale is needed.
    """

    def __init__(self, encoder: Encoder, classifier: Zero3Classifier | None, bf16: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.classifier = classifier
        self.bf16 = bf16

    def forward(self, *images: Tensor) -> Tensor:
        with torch.autocast(images[0].device.type, torch.bfloat16, enabled=self.bf16):
            features: Tensor = self.encoder(*images)
        return features


def deepspeed_config(spec: RunSpec, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration on so many ranks; an attempt may have others than the specification's resources say."""
    batch, parts = spec.optimizer.global_batch_size, spec.optimizer.gradient_accumulation_steps
    config: dict[str, Any] = {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": batch // (world_size * parts),
        "gradient_accumulation_steps": parts,
        # DeepSpeed's own bucket, of 5e8 gradients, takes 2 GB of each GPU.
        "zero_optimization": {"stage": spec.zero_stage, "reduce_bucket_size": REDUCE_BUCKET},
        "gradient_clipping": 0.0,  # DeepSpeed 0.19 clips at 1.0 unless told otherwise; the paper does not clip
        "zero_allow_untested_optimizer": True,  # plain SGD works in every stage; the flag only silences a question
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,  # the loop reports
    }
    if spec.precision == "fp16":
        config["fp16"] = {"enabled": True, "initial_scale_power": 16}
        # DeepSpeed makes the weights fp16; BatchNorm takes its running statistics in no other type than its weights'.
        config["data_types"] = {"buffer_dtype": "fp16"}
    return config


def build_engine(spec: RunSpec, encoder: Encoder, classifier: InstanceClassifier, config: dict[str, Any] | None = None) -> Any:
    """The DeepSpeed engine of the encoder, and of the rows with parallelism zero3. Every rank calls. `config`: in the place
    of deepspeed_config."""
    inside = classifier if isinstance(classifier, Zero3Classifier) else None
    model, section = Model(encoder, inside, spec.precision == "bf16"), spec.optimizer
    # The loop sets the learning rates before each step.
    groups = [{"params": list(encoder.parameters()), "weight_decay": section.weight_decay}]
    if inside is not None:
        decay = section.classifier_weight_decay
        groups.append({"params": list(inside.parameters()), "weight_decay": section.weight_decay if decay is None else decay})
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=section.momentum)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config or deepspeed_config(spec, dist.get_world_size()))
    _create_momentum(engine)
    if spec.precision == "fp16":  # weights that are NaN overflow for ever: the meter says so, on every rank alike
        engine.optimizer.loss_scaler.raise_error_at_min_scale = False
    return engine


def _create_momentum(engine: Any) -> None:
    """Zero momentum from the start. ZeRO creates it in the first step, too late for a checkpoint to be put back."""
    stage, zero = engine.zero_optimization_stage(), engine.optimizer
    if stage == 0:
        return
    for flat in zero.fp32_partitioned_groups_flat if stage == 3 else zero.single_partition_of_fp32_groups:
        zero.optimizer.state[flat][MOMENTUM] = torch.zeros_like(flat)
    if stage < 3:
        zero._lazy_init_hp_params_optimizer_state()  # makes the parameters' views of it


def set_learning_rates(engine: Any, encoder: float, classifier: float) -> None:
    for group, rate in zip(engine.optimizer.param_groups, (encoder, classifier), strict=False):
        group["lr"] = rate


def average_buffers(module: nn.Module, world_size: int) -> None:
    """Average the BatchNorm running statistics over the ranks.

    Their update is linear, so the average is that of averaged batch statistics; done in every step it makes the ranks'
    buffers equal, and a checkpoint independent of how many ranks wrote it.
    """
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if world_size == 1 or not buffers:
        return
    flat = torch.cat([buffer.flatten().float() for buffer in buffers])
    dist.all_reduce(flat)
    flat /= world_size
    for buffer, part in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))


def full_state(engine: Any) -> dict[str, dict[str, Tensor]]:
    """{"parameter", "momentum", "buffer"} by name, whole and on the CPU; parameters and momentum in fp32.

    Every rank calls (partitions are gathered one parameter at a time); every rank gets the result.
    """
    stage = engine.zero_optimization_stage()
    parameters: dict[str, Tensor] = {}
    momentum: dict[str, Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        if stage == 0:
            value, buffer = parameter.detach(), engine.optimizer.state[parameter].get(MOMENTUM)
        else:
            value, buffer = safe_get_full_fp32_param(parameter), safe_get_full_optimizer_state(parameter, MOMENTUM)
        parameters[name] = value.float().cpu().clone()
        momentum[name] = torch.zeros_like(parameters[name]) if buffer is None else buffer.float().cpu().clone()
    buffers = {name: buffer.cpu().clone() for name, buffer in engine.module.named_buffers()}
    return {"parameter": parameters, "momentum": momentum, "buffer": buffers}


@torch.no_grad()
def load_full_state(engine: Any, state: dict[str, dict[str, Tensor]]) -> None:
    """Put back what `full_state` returned, at any ZeRO stage and number of ranks. Every rank calls."""
    stage = engine.zero_optimization_stage()
    for name, parameter in engine.module.named_parameters():
        value, buffer = state["parameter"][name], state["momentum"][name]
        if stage == 0:
            parameter.copy_(value)
            engine.optimizer.state[parameter][MOMENTUM] = buffer.to(parameter.device, copy=True)
            continue
        # The copy that the forward pass reads is another tensor than the fp32 one.
        if stage == 3:
            set_partition(parameter, value.to(engine.device))
            set_partition(parameter, buffer.to(engine.device), MOMENTUM)
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(value)
        else:
            safe_set_full_fp32_param(parameter, value.to(engine.device))
            safe_set_full_optimizer_state(parameter, buffer.to(engine.device), MOMENTUM)
            parameter.copy_(value)
    for name, buffer in engine.module.named_buffers():
        buffer.copy_(state["buffer"][name])


def loss_scaler_state(engine: Any) -> dict[str, Any]:
    """The dynamic fp16 loss scale, for an exact resume; empty in other precisions."""
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    names = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
    return {name: getattr(scaler, name) for name in names if hasattr(scaler, name)}


def load_loss_scaler_state(engine: Any, state: dict[str, Any]) -> None:
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    for name, value in state.items():
        if hasattr(scaler, name):
            setattr(scaler, name, value)
