"""What each event of the job changes in its run's record. `store_events.lua` carries it out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from service.events import Checkpointed, Evaluated, Exported, Failed, JobEvent, Phase, Progress, Started, Straggler, Warned, job_event
from service.runs import Checkpoint

SERIES = ("loss", "learning_rate", "images_per_second", "data_wait")
"""What is kept of each progress report as a curve."""


def read_event(document: Mapping[str, Any]) -> JobEvent:
    """An event as the worker sent it. What this version does not understand becomes a warning, so that it holds nothing back.

    Raises ValidationError where even `seq` or `time` is missing.
    """
    try:
        return job_event.validate_python(document)
    except ValidationError as error:
        what = f"{document.get('kind')!r}: " + "; ".join(f"{'.'.join(map(str, e['loc'][1:]))} {e['msg']}" for e in error.errors())
        return Warned.model_validate(
            {
                "seq": document.get("seq"),
                "time": document.get("time"),
                "message": f"the job reported something that the API does not understand: {what}"[:1000],
            }
        )


def effects(event: JobEvent, attempt: int) -> dict[str, Any]:
    """The event as store_events.lua takes it: its text, the record's fields that it sets, and what else it does."""
    changes: dict[str, str] = {}
    effect: dict[str, Any] = {
        "seq": event.seq,
        "kind": event.kind,
        "text": event.model_dump_json(exclude={"kind"}),
        "changes": changes,
    }
    match event:
        case Started():
            changes |= {"num_images": str(event.num_images), "step": str(event.start_step)}
            ranks = "1 rank" if event.world_size == 1 else f"{event.world_size} ranks"
            effect["start_step"] = event.start_step
            effect["started"] = f"training from step {event.start_step} on {ranks}: {event.device}"
        case Phase():
            changes["phase"] = event.phase
        case Progress():
            changes |= {"progress": event.model_dump_json(), "step": str(event.step), "ends_at": str(time.time() + event.eta_seconds)}
            values = {name: getattr(event, name) for name in SERIES}
            effect["point"] = {"step": event.step, "values": values}
        case Evaluated():
            changes["knn"] = str(event.knn)
            effect["point"] = {"step": event.step, "values": {"knn": event.knn}}
            if event.epoch == 0:
                changes["knn_random"] = str(event.knn)
            if event.knn_pixels is not None:
                changes["knn_pixels"] = str(event.knn_pixels)
        case Checkpointed():
            changes |= {"checkpoint": event.path, "checkpoint_step": str(event.step)}
            kept = Checkpoint(**event.model_dump(exclude={"seq", "time", "kind", "removed"}), attempt=attempt, created_at=event.time)
            effect["checkpoint"] = {"path": event.path, "step": event.step, "text": kept.model_dump_json()}
            effect["removed"] = event.removed
        case Straggler():
            effect["straggler"] = event.rank
            slower = event.seconds / max(event.median_seconds, 1e-9)
            effect["warning"] = f"rank {event.rank} takes {slower:.1f} times as long per step as the median rank, and all wait for it"
        case Exported():
            changes["export"] = event.path
        case Warned():
            effect["warning"] = event.message[:1000]
        case Failed():
            pass  # kept among the events; the worker reads it in the spool and reports the cause with the attempt's end
    return effect
