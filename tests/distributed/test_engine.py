"""DeepSpeed's engine with the classifier beside it or inside it: every ZeRO stage, on real gloo processes."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from service.layout import RunDir
from service.spec import RunSpec
from tests.distributed.launch import on_ranks
from trainer.fence import Fence

pytestmark = pytest.mark.distributed

NUM_IMAGES, BATCH, RATE = 37, 12, 0.05


def spec_for(world_size: int, zero_stage: int, parallelism: str = "class", precision: str = "fp32", **classifier: Any) -> RunSpec:
    return RunSpec.model_validate(
        {
            "preset": "demo",
            "data": {"path": "/nowhere", "image_size": 16},
            "backbone": {"args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]}},
            "classifier": {"embedding_size": 16, "hardest_k": 5, "chunk_size": 16, "parallelism": parallelism, **classifier},
            "optimizer": {"global_batch_size": BATCH, "classifier_weight_decay": 1e-3},
            "zero_stage": zero_stage,
            "precision": precision,
            "resources": {"ranks_per_node": world_size},
        }
    )


def build(spec: RunSpec) -> tuple[Any, Any]:
    import deepspeed

    from trainer.classifier import build_classifier
    from trainer.encoder import build_encoder
    from trainer.engine import build_engine, deepspeed_config

    torch.manual_seed(0)
    os.environ |= {"LOCAL_RANK": str(dist.get_rank()), "RANK": str(dist.get_rank()), "WORLD_SIZE": str(dist.get_world_size())}
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    encoder = build_encoder(spec)
    classifier = build_classifier(spec, NUM_IMAGES, torch.device("cpu"))
    config = deepspeed_config(spec, dist.get_world_size())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # so small a network would stay whole on every rank
    return build_engine(spec, encoder, classifier, config), classifier


def advance(spec: RunSpec, engine: Any, classifier: Any, steps: range, uneven: bool = True) -> list[float]:
    """Train the given steps on images that follow from the step; the mean losses. `uneven`: every other step has an image less."""
    from trainer.engine import average_buffers, set_learning_rates

    rank, P = dist.get_rank(), dist.get_world_size()
    engine.module.encoder.train()
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        size = BATCH - step % 2 * uneven
        images = torch.randn(size, 3, 16, 16, generator=generator)
        instances = torch.randint(NUM_IMAGES, (size,), generator=generator)
        part = slice(rank * size // P, (rank + 1) * size // P)
        set_learning_rates(engine, RATE, 4 * RATE)
        num_parts, loss = spec.optimizer.gradient_accumulation_steps, torch.zeros(())
        for some_images, some_instances in zip(images[part].tensor_split(num_parts), instances[part].tensor_split(num_parts), strict=True):
            part_loss = classifier(engine(some_images), some_instances)
            engine.backward(part_loss)
            engine.step()
            loss += part_loss.detach() / num_parts
        assert engine.was_step_applied()
        classifier.step(4 * RATE, step + 1)
        average_buffers(engine.module.encoder, P)
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean.item() / P)
    return losses


def everything(engine: Any, classifier: Any) -> dict[str, torch.Tensor]:
    from trainer.engine import full_state

    state = {f"{kind}/{name}": value for kind, part in full_state(engine).items() for name, value in part.items()}
    if hasattr(classifier, "rows_nD"):
        state |= {"rows": classifier.rows_nD.clone(), "rows_momentum": classifier.momentum_nD.clone()}
    return state


def save(directory: Path, step: int, engine: Any, classifier: Any, spec: RunSpec, fence: Fence | None = None) -> None:
    from trainer.checkpoint import save_checkpoint

    rank, P = dist.get_rank(), dist.get_world_size()
    fence = fence or Fence(RunDir(directory), 1)
    save_checkpoint(directory, step, engine, classifier, spec, images_sha256="x", knn=None, rank=rank, world_size=P, fence=fence)


def load(directory: Path, engine: Any, classifier: Any) -> None:
    from trainer.checkpoint import load_checkpoint
    from trainer.checkpoint_files import newest_checkpoint

    saved = newest_checkpoint(directory)
    assert saved is not None
    load_checkpoint(saved, engine, classifier, images_sha256="x", rank=dist.get_rank(), world_size=dist.get_world_size())


def rows_after_prior(specs: list[RunSpec]) -> list[torch.Tensor]:
    """The rows after they were written and one step was taken: rank's shard, or all N of them."""
    outcome = []
    for spec in specs:
        engine, classifier = build(spec)
        P = dist.get_world_size()
        instance = torch.arange(dist.get_rank(), -(-NUM_IMAGES // P) * P, P)
        features = torch.cos(torch.arange(16) * (1.0 + instance[:, None])).float()
        classifier.write_rows(torch.where(instance < NUM_IMAGES, instance, -1), features)
        advance(spec, engine, classifier, range(1))
        state = everything(engine, classifier)
        outcome.append(state["rows"] if "rows" in state else state["parameter/classifier.rows_ND"])
    return outcome


def test_the_priors_rows_stay_in_both_parallelisms(tmp_path: Path) -> None:
    """Rows written before the first step are those that the first step starts from, also in ZeRO-3's own copies, and where the
    rows do not divide by the number of ranks."""
    ranks = on_ranks(3, tmp_path, rows_after_prior, [spec_for(3, 3), spec_for(3, 3, "zero3")])
    sharded, whole = torch.cat([rank[0] for rank in ranks]), ranks[0][1]
    torch.testing.assert_close(whole, sharded, atol=1e-5, rtol=1e-5)


def losses_of(specs: list[RunSpec]) -> list[list[float]]:
    return [advance(spec, *build(spec), range(5)) for spec in specs]


def test_zero_stages_and_both_parallelisms_train_to_the_same_losses(tmp_path: Path) -> None:
    """Stages 0 to 3 with the rows beside the engine, and the rows inside ZeRO-3, agree over five steps on two ranks."""
    specs = [spec_for(2, stage) for stage in range(4)] + [spec_for(2, 3, "zero3")]
    expected, *others = on_ranks(2, tmp_path, losses_of, specs)[0]
    assert expected[-1] != expected[0]
    for losses in others:
        assert losses == pytest.approx(expected, rel=1e-5)


def losses_in_parts(specs: list[RunSpec]) -> list[list[float]]:
    return [advance(spec, *build(spec), range(4), uneven=False) for spec in specs]


def test_two_parts_on_one_rank_train_as_two_ranks(tmp_path: Path) -> None:
    """Gradient accumulation: a part's BatchNorm statistics, softmax and share of the step are those of a rank, in both parallelisms."""
    in_parts = {"gradient_accumulation_steps": 2, "global_batch_size": BATCH}
    cases = [(1, "class"), (2, "class"), (3, "zero3")]
    two = on_ranks(2, tmp_path, losses_in_parts, [spec_for(2, stage, parallelism) for stage, parallelism in cases])[0]
    specs = [spec_for(1, stage, parallelism).model_dump(mode="json") for stage, parallelism in cases]
    one = on_ranks(
        1, tmp_path, losses_in_parts, [RunSpec.model_validate(spec | {"optimizer": spec["optimizer"] | in_parts}) for spec in specs]
    )[0]
    for expected, losses in zip(two, one, strict=True):
        assert expected[-1] != expected[0]
        assert losses == pytest.approx(expected, rel=2e-4)  # sums in another order, through BatchNorms of 6 images


def test_bf16_scores_close_to_fp32_and_trains(tmp_path: Path) -> None:
    """Products in bf16, everything else in fp32: the first loss agrees to a percent, without being the same; none is lost."""
    fp32, bf16 = on_ranks(2, tmp_path, losses_of, [spec_for(2, 1), spec_for(2, 1, precision="bf16")])[0]
    assert bf16[0] != fp32[0]
    assert bf16[0] == pytest.approx(fp32[0], rel=0.01)
    assert bf16[0] != bf16[-1]
    assert all(math.isfinite(loss) for loss in bf16)


def interrupted(specs: list[RunSpec], directory: str) -> list[list[str]]:
    """Train 6 steps; and 3, save, load into fresh objects, 3 more. What differs in the end, by specification."""
    from trainer.classifier.similarity import refresh_hardest

    differing = []
    for i, spec in enumerate(specs):
        where = Path(directory) / str(i)
        engine, classifier = build(spec)
        if spec.classifier.hardest_by == "class_similarity":
            refresh_hardest(classifier)
        advance(spec, engine, classifier, range(3))
        save(where, 3, engine, classifier, spec)
        advance(spec, engine, classifier, range(3, 6))
        expected = everything(engine, classifier)

        engine, classifier = build(spec)
        load(where, engine, classifier)
        advance(spec, engine, classifier, range(3, 6))
        found = everything(engine, classifier)
        assert found.keys() == expected.keys()
        differing.append([name for name in found if not torch.equal(found[name], expected[name])])
    return differing


def test_resuming_gives_the_same_weights_as_never_stopping(tmp_path: Path) -> None:
    """Bit for bit: parameters, momenta, buffers and rows, in every ZeRO stage and both parallelisms, on two ranks."""
    specs = [spec_for(2, stage) for stage in range(4)]
    specs += [
        spec_for(2, 1, precision="bf16"),
        spec_for(2, 3, "zero3"),
        spec_for(2, 0, hardest_by="class_similarity"),
        spec_for(2, 3, "zero3", hardest_by="class_similarity"),
        spec_for(2, 1, rows_dtype="bf16", momentum_dtype="bf16"),
        spec_for(2, 0, rows_dtype="fp16", rows_on="host"),
    ]
    for rank in on_ranks(2, tmp_path, interrupted, specs, str(tmp_path / "checkpoints")):
        assert rank == [[]] * len(specs)


def saved_on(spec: RunSpec, directory: str) -> dict[str, torch.Tensor]:
    engine, classifier = build(spec)
    advance(spec, engine, classifier, range(2))
    save(Path(directory), 2, engine, classifier, spec)
    return everything(engine, classifier)
