"""What each event of the job changes in its run's record. `store_events.lua` carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from service.events import Checkpointed, Evaluated, Exported, Failed, JobEvent, Phase, Progress, Started, Warned, job_event
from service.runs import Checkpoint


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
        "text": event.model_dump_json(),
        "is_metric": isinstance(event, Progress | Evaluated),
        "changes": changes,
    }
    match event:
        case Started():
            changes["num_images"] = str(event.num_images)
            ranks = "1 rank" if event.world_size == 1 else f"{event.world_size} ranks"
            effect["started"] = f"training from step {event.start_step} on {ranks}: {event.device}"
        case Phase():
            changes["phase"] = event.phase
        case Progress():
            changes["progress"] = event.model_dump_json()
        case Evaluated():
            changes["knn"] = str(event.knn)
            if event.epoch == 0:
                changes["knn_random"] = str(event.knn)
            if event.knn_pixels is not None:
                changes["knn_pixels"] = str(event.knn_pixels)
        case Checkpointed():
            changes |= {"checkpoint": event.path, "checkpoint_step": str(event.step)}
            kept = Checkpoint(**event.model_dump(exclude={"seq", "time", "kind", "removed"}), attempt=attempt, created_at=event.time)
            effect["checkpoint"] = {"path": event.path, "text": kept.model_dump_json()}
            effect["removed"] = event.removed
        case Exported():
            changes["export"] = event.path
        case Warned():
            effect["warning"] = event.message
        case Failed():
            pass  # kept among the events; the worker reads it in the spool and reports the cause with the attempt's end
    return effect
