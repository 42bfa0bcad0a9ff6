"""An attempt on another number of ranks than the last one: what is loaded is what was written, and training goes on as it would have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from service.spec import RunSpec
from tests.distributed.launch import on_ranks
from tests.distributed.test_engine import advance, build, everything, load, save, spec_for
from trainer.classifier.similarity import refresh_hardest

pytestmark = pytest.mark.distributed

STEPS = 3


def specs() -> dict[str, RunSpec]:
    """ZeRO stages that keep different things whole, and both parallelisms with hardest by class similarity; BatchNorm over all ranks."""
    cases: dict[str, tuple[int, str, dict[str, Any]]] = {f"zero {stage}": (stage, "class", {}) for stage in (0, 2, 3)}
    cases["similarity"] = (1, "class", {"hardest_by": "class_similarity"})
    cases["zero3 rows"] = (3, "zero3", {"hardest_by": "class_similarity"})
    made = {}
    for name, (stage, parallelism, classifier) in cases.items():
        document = spec_for(2, stage, parallelism, **classifier).model_dump(mode="json")
        document["backbone"]["batch_norm"] = "synchronised"
        made[name] = RunSpec.model_validate(document)
    return made


def whole(engine: Any, classifier: Any) -> dict[str, torch.Tensor]:
    """Encoder, momenta, buffers, this rank's rows with momentum, and the hardest classes."""
    state = everything(engine, classifier)
    hardest = classifier.hardest_nK if hasattr(classifier, "rows_nD") else classifier.hardest_NK
    return state | ({} if hardest is None else {"hardest": hardest.clone()})


def written(directory: str) -> dict[str, Any]:
    """Train, save; the state that was saved and the losses of the steps after it."""
    results = {}
    for name, spec in specs().items():
        engine, classifier = build(spec)
        if spec.classifier.hardest_by == "class_similarity":
            refresh_hardest(classifier)
        advance(spec, engine, classifier, range(STEPS))
        save(Path(directory) / name, STEPS, engine, classifier, spec)
        results[name] = whole(engine, classifier), advance(spec, engine, classifier, range(STEPS, 2 * STEPS))
    return results


def resumed(directory: str) -> dict[str, Any]:
    """Load into fresh objects; the state that was loaded and the losses of the steps after it."""
    results = {}
    for name, spec in specs().items():
        engine, classifier = build(spec)
        load(Path(directory) / name, engine, classifier)
        results[name] = whole(engine, classifier), advance(spec, engine, classifier, range(STEPS, 2 * STEPS))
    return results


def joined(ranks: list[dict[str, Any]], name: str) -> dict[str, torch.Tensor]:
    """The state of all ranks: shards in rank order, everything else from each rank, which must be the same on all."""
    states = [rank[name][0] for rank in ranks]
    sharded = {"rows", "rows_momentum", "hardest"} if "rows" in states[0] else set()
    state = {key: torch.cat([state[key] for state in states]) for key in sharded & states[0].keys()}
    for key in states[0].keys() - sharded:
        state[key] = states[0][key]
        assert all(torch.equal(state[key], other[key]) for other in states), key
    return state


def test_any_number_of_ranks_goes_on_from_what_two_have_written(tmp_path: Path) -> None:
    """On 1 and 3 ranks: the loaded state has the written bits (weights, momenta, buffers, rows, rows' momenta, hardest
    classes), in ZeRO stages and both parallelisms, and the losses after it are those of the two ranks within float tolerance."""
    directory = str(tmp_path / "checkpoints")
    two = on_ranks(2, tmp_path, written, directory)
    for world_size in (1, 3):
        ranks = on_ranks(world_size, tmp_path, resumed, directory)
        for name in specs():
            found, expected = joined(ranks, name), joined(two, name)
            assert found.keys() == expected.keys()
            assert ("hardest" in found) == (name in ("similarity", "zero3 rows"))
            assert [key for key in expected if not torch.equal(found[key], expected[key])] == [], (world_size, name)
            assert ranks[0][name][1] == pytest.approx(two[0][name][1], rel=1e-5), (world_size, name)
