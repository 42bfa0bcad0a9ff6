"""Specifications, requests and events as the tests of the control plane send them."""

from __future__ import annotations

from typing import Any

from service.protocol import ExitReport
from service.spec import RunSpec, parse_spec


def document(**sections: Any) -> dict[str, Any]:
    """A correct specification of two ranks, with `sections` laid over it."""
    base = {"preset": "demo", "data": {"path": "/data/images"}}
    return {**base, **sections}


def spec(*, nodes: int = 1, ranks_per_node: int = 2, **sections: Any) -> RunSpec:
    """Of a batch that many numbers of ranks divide."""
    resources = {"nodes": nodes, "ranks_per_node": ranks_per_node, **sections.pop("resources", {})}
    return parse_spec(document(resources=resources, optimizer={"global_batch_size": 240}, **sections))


def report(outcome: str, reason: str = "the job ended", worker: str = "w1", **fields: Any) -> ExitReport:
    return ExitReport.model_validate({"worker": worker, "outcome": outcome, "reason": reason, **fields})


def started(seq: int = 1, **fields: Any) -> dict[str, Any]:
    values = {"num_images": 100, "num_steps": 50, "start_step": 0, "world_size": 2, "device": "cpu, fp32, 1 thread per rank"}
    return {"kind": "started", "seq": seq, "time": 1.0, **values, **fields}


def progress(seq: int, step: int) -> dict[str, Any]:
    fields = {"num_steps": 50, "epoch": step / 10, "num_epochs": 5, "loss": 4.5, "learning_rate": 0.1}
    speed = {"images_per_second": 99.5, "data_wait": 0.25, "eta_seconds": 12.0}
    return {"kind": "progress", "seq": seq, "time": 2.0, "step": step, **fields, **speed}


def evaluated(seq: int, epoch: float, knn: float, knn_pixels: float | None = None) -> dict[str, Any]:
    return {"kind": "evaluated", "seq": seq, "time": 3.0, "step": int(epoch * 10), "epoch": epoch, "knn": knn, "knn_pixels": knn_pixels}


def checkpointed(seq: int, step: int, removed: tuple[str, ...] = ()) -> dict[str, Any]:
    path = f"/runs/x/checkpoints/step-{step:09d}"
    return {
        "kind": "checkpointed",
        "seq": seq,
        "time": 4.0,
        "step": step,
        "epoch": step / 10,
        "path": path,
        "num_bytes": 1000,
        "removed": list(removed),
    }


def failed(seq: int, message: str) -> dict[str, Any]:
    return {"kind": "failed", "seq": seq, "time": 5.0, "code": "non_finite_loss", "message": message}
