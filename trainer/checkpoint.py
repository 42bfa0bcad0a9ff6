"""Checkpoints: whole or absent, checksummed, independent of the number of ranks, readable without us.

    checkpoints/step-000000120/
      manifest.json                     format, step, specification, images, checksums, kNN
      encoder.safetensors               parameter/NAME, momentum/NAME, buffer/NAME
      shard-00000-of-00002.safetensors  rows, rows_momentum of classes start .. stop; this rank's random state

Written to a temporary directory beside it, flushed to disk, renamed. The sampler's position is the step: which images a step
sees, and how they are augmented, are functions of it and of the seed. Nothing is pickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.layout import write_whole
from service.spec import RunSpec
from trainer.checkpoint_files import FORMAT, MANIFEST, Saved
from trainer.classifier import InstanceClassifier, ShardedClassifier, Zero3Classifier
from trainer.durable import sha256, sync
from trainer.engine import full_state, load_full_state, load_loss_scaler_state, loss_scaler_state
from trainer.errors import BadData, DiskError
from trainer.fence import Fence, Fenced

T = TypeVar("T")
READ = 1 << 20
"""Rows that are read from a shard at a time."""


def save_checkpoint(
    directory: Path,
    step: int,
    engine: Any,
    classifier: InstanceClassifier,
    spec: RunSpec,
    *,
    images_sha256: str,
    knn: float | None,
    rank: int,
    world_size: int,
    fence: Fence,
) -> Saved:
    """Write the checkpoint of `step`. Every rank calls; all return, or all raise: DiskError when one cannot write, Fenced when
    a newer attempt has begun, which then finds nothing of this one."""
    final = directory / f"step-{step:09d}"
    # The attempt is in the name: one that was thought dead may write at the same time.
    temporary = directory / f".{final.name}.attempt-{fence.attempt:04d}.tmp"
    state = full_state(engine)

    def prepare() -> bool:
        if rank == 0:
            if fence.passed:
                return False
            for left in directory.glob(".step-*.tmp"):  # by attempts that were killed
                shutil.rmtree(left, ignore_errors=True)
            temporary.mkdir(parents=True)
        return True

    def write() -> dict[str, Any]:
        name = f"shard-{rank:05d}-of-{world_size:05d}.safetensors"
        written = {name: _write_tensors(temporary / name, _shard_tensors(classifier))}
        if isinstance(classifier, ShardedClassifier):
            written[name] |= {"start": classifier.shard.start, "stop": classifier.shard.stop}
        if rank == 0:
            flat = {f"{kind}/{name}": tensor for kind, tensors in state.items() for name, tensor in tensors.items()}
            written["encoder.safetensors"] = _write_tensors(temporary / "encoder.safetensors", flat)
        return written

    def finish() -> bool:
        if rank == 0:
            write_whole(temporary / MANIFEST, json.dumps(manifest, indent=1))
            sync(temporary)
            if fence.passed:
                return False
            if final.exists():  # left by an attempt that was killed right after
                shutil.rmtree(final)
            temporary.rename(final)
            sync(directory)
        return True

    try:
        if not all(_together(prepare, world_size)):
            raise Fenced(f"a newer attempt has begun: the checkpoint of step {step} is not written")
        files = _together(write, world_size)
        manifest = {
            "format": FORMAT,
            "step": step,
            "world_size": world_size,
            "knn": knn,
            "images_sha256": images_sha256,
            "loss_scaler": loss_scaler_state(engine),
            "spec": spec.model_dump(mode="json"),
            "files": {name: about for part in files for name, about in part.items()},
        }
        if not all(_together(finish, world_size)):
            raise Fenced(f"a newer attempt has begun: the checkpoint of step {step} is not published")
    except OSError as error:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise DiskError(f"the checkpoint of step {step} cannot be written to {directory}: {error}: make room there") from error
    return Saved(final, manifest)


def load_checkpoint(saved: Saved, engine: Any, classifier: InstanceClassifier, *, images_sha256: str, rank: int, world_size: int) -> None:
    """Put the state of `saved` back. Every rank calls; the number of ranks may differ from the writer's."""
    manifest = saved.manifest
    if manifest["images_sha256"] != images_sha256:
        raise BadData(
            f"the images are not those of checkpoint {saved.path}: files were added, removed or renamed since; every image is "
            "a class, so restore the folder, or start a new run"
        )
    flat = load_file(saved.path / "encoder.safetensors")
    state: dict[str, dict[str, Tensor]] = {"parameter": {}, "momentum": {}, "buffer": {}}
    for key, tensor in flat.items():
        kind, name = key.split("/", 1)
        state[kind][name] = tensor
    load_full_state(engine, state)
    load_loss_scaler_state(engine, manifest["loss_scaler"])
    if isinstance(classifier, ShardedClassifier):
        _load_rows(saved, classifier)
    elif "hardest" in (own := _read_shard(saved, 0)):
        classifier.hardest_NK = own["hardest"].to(engine.device)
    if saved.world_size == world_size:
        own = _read_shard(saved, rank)
        torch.set_rng_state(own["torch_rng"])
        if "cuda_rng" in own and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["cuda_rng"])
    else:  # dropout's masks go on with numbers that no rank has drawn yet
        torch.manual_seed((manifest["spec"]["seed"] + rank + 1) * 1_000_003 + saved.step)


def _shard_tensors(classifier: InstanceClassifier) -> dict[str, Tensor]:
    tensors = {"torch_rng": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        tensors["cuda_rng"] = torch.cuda.get_rng_state()
    if isinstance(classifier, ShardedClassifier):
        tensors |= {"rows": classifier.rows_nD, "rows_momentum": classifier.momentum_nD}
    hardest = classifier.hardest_NK if isinstance(classifier, Zero3Classifier) else classifier.hardest_nK
    if hardest is not None:
        tensors["hardest"] = hardest
    return tensors


def _load_rows(saved: Saved, classifier: ShardedClassifier) -> None:
    """Fill this rank's rows from whichever of the writer's shards hold them."""
    start, stop = classifier.shard.start, classifier.shard.stop
    device = classifier.rows_nD.device
    hardest = []
    for name, about in saved.manifest["files"].items():
        if "start" not in about:
            continue
        low, high = max(start, about["start"]), min(stop, about["stop"])
        with safe_open(saved.path / name, framework="pt") as file:
            theirs = slice(max(0, low - about["start"]), max(0, high - about["start"]))
            for tensor, mine_nD in (("rows", classifier.rows_nD), ("rows_momentum", classifier.momentum_nD)):
                part = file.get_slice(tensor)
                for first in range(low, high, READ):  # a shard may be most of the host's memory
                    last = min(first + READ, high)
                    mine_nD[first - start : last - start] = part[first - about["start"] : last - about["start"]].to(mine_nD)
            if "hardest" in file.keys():  # noqa: SIM118 - safe_open is no dictionary
                hardest.append(file.get_slice("hardest")[theirs].to(device))
    classifier.hardest_nK = torch.cat(hardest) if hardest else None


def _read_shard(saved: Saved, rank: int) -> dict[str, Tensor]:
    name = f"shard-{rank:05d}-of-{saved.world_size:05d}.safetensors"
    wanted = ("torch_rng", "cuda_rng", "hardest")
    with safe_open(saved.path / name, framework="pt") as file:
        return {key: file.get_tensor(key) for key in wanted if key in file.keys()}  # noqa: SIM118


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, path)
    path.chmod(0o644)  # safetensors lets its owner alone read it; the API, another user, streams it to others
    sync(path)
    return {"sha256": sha256(path), "bytes": path.stat().st_size}


def _together(action: Callable[[], T], world_size: int) -> list[T]:
    """Run `action` on every rank; their results. If one cannot write, all raise OSError, and none waits for the others."""
    result, problem = None, None
    try:
        result = action()
    except (OSError, SafetensorError) as error:
        problem = f"{type(error).__name__}: {error}"
    outcomes = [(result, problem)]
    if world_size > 1:
        outcomes = [(None, None)] * world_size
        dist.all_gather_object(outcomes, (result, problem))
    if problems := [f"rank {rank}: {problem}" for rank, (_, problem) in enumerate(outcomes) if problem]:
        raise OSError("; ".join(problems))
    return [result for result, _ in outcomes]  # type: ignore[misc]
