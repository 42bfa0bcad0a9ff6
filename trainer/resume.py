"""Where an attempt starts: the run's own newest checkpoint, another run's that it is a fork of, or the beginning."""

from __future__ import annotations

from pathlib import Path

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from service.errors import InvalidSpec
from service.fork import check_fork
from service.spec import RunSpec
from trainer.checkpoint_files import Saved, newest_checkpoint, open_checkpoint
from trainer.errors import BadSpec
from trainer.schedule import Plan


def find_start(own: Path, start_from: Path | None, spec: RunSpec, plan: Plan) -> Saved | None:
    """The checkpoint to load; None to begin at the beginning. One rank calls.

    Raises BadData where `start_from` is no whole checkpoint, BadSpec where `spec` cannot go on from it.
    """
    saved = newest_checkpoint(own)
    if saved is not None or start_from is None:
        return saved
    saved = open_checkpoint(start_from)
    try:
        check_fork(saved.spec, spec, saved.step)
    except InvalidSpec as error:
        raise BadSpec(str(error)) from None
    if plan.num_steps <= saved.step:
        raise BadSpec(
            f"the schedule is {plan.num_steps} steps long ({plan.num_epochs:g} epochs) and checkpoint {saved.path} stands at step "
            f"{saved.step}: lengthen schedule.epochs or schedule.steps"
        )
    return saved


def resize_warning(saved: Saved, encoder: nn.Module, spec: RunSpec, world_size: int) -> str | None:
    """What goes on differently than on the number of ranks that wrote the checkpoint; None where nothing does."""
    has_batch_norm = any(isinstance(module, _BatchNorm) for module in encoder.modules())
    if saved.world_size == world_size or spec.backbone.batch_norm == "synchronised" or not has_batch_norm:
        return None
    batch = spec.optimizer.images_at_a_time
    return (
        f"going on with {world_size} ranks from a checkpoint of {saved.world_size}: global batch, schedule, order of the images, rows and "
        f"momenta are the same, but BatchNorm takes its statistics from {batch // world_size} images where it took them from "
        f"{batch // saved.world_size}; with backbone.batch_norm synchronised they do not depend on the number of ranks"
    )
