"""What Redis holds, as the records of service/runs.py and as the scheduler's snapshot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from service.runs import Attempt, Holding, Member, Run, RunEvent, Worker, WorkerState
from service.scheduling.model import Cluster, Live, Node, Queued
from service.spec import RunSpec, stored_spec

PARSED = ("progress", "warnings", "labels", "workers", "parent")
DAY = 86_400.0


def run_fields(spec: RunSpec) -> dict[str, Any]:
    """What the script needs to know of a specification."""
    resources = spec.resources
    fields = {
        "name": spec.name,
        "spec": spec.model_dump_json(),
        "priority": spec.priority,
        "labels": json.dumps(spec.labels),
        "shapes": json.dumps(resources.shapes(spec.optimizer.images_at_a_time)),
        "device": spec.device,
        "retries_infrastructure": spec.retries.infrastructure,
        "retries_crashes": spec.retries.crashes,
        "retries_preemptions": spec.retries.preemptions,
        "throughput_key": throughput_key(spec),
    }
    return fields | ({"max_seconds": resources.max_hours * 3600} if resources.max_hours else {})


def throughput_key(spec: RunSpec) -> str:
    """Runs of the same key train about as many images per second on a rank."""
    args = json.dumps(spec.backbone.args, sort_keys=True)
    views = " ".join(f"{kind.number}x{kind.size}" for kind in spec.view_kinds)
    return f"{spec.backbone.name} {args} {views} {spec.precision} {spec.resources.device}"


def run_record(record: Mapping[str, str]) -> Run:
    parsed = {name: json.loads(record[name]) for name in PARSED if record.get(name)}
    return Run.model_validate({**record, **parsed, "spec": stored_spec(record["spec"])})


def attempt_record(record: Mapping[str, str]) -> Attempt:
    members = []
    for node, member in enumerate(json.loads(record["members"])):
        last_word = json.loads(record.get(f"exit:{node}", "{}"))
        members.append(Member.model_validate({**member, **last_word, "state": record.get(f"state:{node}", "offered")}))
    return Attempt.model_validate({**record, "members": members})


def worker_record(record: Mapping[str, Any], now: float) -> Worker:
    alive = record["lease"] > now
    holds = [Holding.model_validate(held) for held in record["owned"]]
    drain = record.get("drain", "")
    if not alive:
        state = WorkerState.SILENT
    elif drain or record.get("leaving") == "1":
        state = WorkerState.DRAINING if holds else WorkerState.DRAINED
    else:
        state = WorkerState.READY
    return Worker.model_validate({**record, "shared": record["shared"] == "1", "holds": holds, "alive": alive, "state": state})


def event_record(entry: Mapping[str, Any]) -> RunEvent:
    fields = entry["fields"]
    return RunEvent(
        cursor=entry["id"],
        time=float(fields["time"]),
        kind=fields["kind"],
        attempt=int(fields["attempt"]),
        data=json.loads(fields["data"]),
    )


def cluster_of(snapshot: Mapping[str, Any]) -> Cluster:
    """What the scheduler sees. Workers that are silent or leave are not there; the slots of attempts that end are still owned."""
    now = float(snapshot["now"])
    newest = {run["id"]: int(run["attempt"]) for run in snapshot["live"]}
    slots: dict[str, dict[str, tuple[int, ...]]] = {}
    for worker in snapshot["workers"]:
        for held in worker["owned"]:
            if held["attempt"] == newest[held["run_id"]]:  # an older one's are not the run's: its worker may be silent for long
                slots.setdefault(held["run_id"], {})[worker["id"]] = tuple(held["slots"])
    return Cluster(
        now=now,
        nodes=tuple(_node(worker) for worker in snapshot["workers"] if worker["lease"] > now and worker.get("leaving") != "1"),
        queued=tuple(_queued(dict(zip(snapshot["columns"], row, strict=True)), now) for row in snapshot["queued"]),
        live=tuple(_live(run, slots[run["id"]]) for run in snapshot["live"] if run["id"] in slots),
        usage={owner: _decayed(text, now) for owner, text in dict(snapshot["usage"]).items()},
    )


def _node(worker: Mapping[str, Any]) -> Node:
    owned = {slot for held in worker["owned"] for slot in held["slots"]}
    return Node(
        id=worker["id"],
        num_slots=int(worker["slots"]),
        free=tuple(slot for slot in range(int(worker["slots"])) if slot not in owned),
        is_cuda=worker["cuda"] == "1",
        storage=worker["storage"],
        is_shared=worker["shared"] == "1",
        drain=worker.get("drain", ""),
    )


def _queued(run: Mapping[str, str], now: float) -> Queued:
    avoid = json.loads(run.get("avoid") or "{}")
    return Queued(
        run_id=run["id"],
        owner=run["owner"],
        priority=int(run["priority"]),
        sequence=int(run["sequence"]),
        queued_at=float(run["queued_at"]),
        shapes=tuple((nodes, ranks) for nodes, ranks in json.loads(run["shapes"])),
        device=run["device"],
        max_seconds=_optional(run, "max_seconds"),
        storage=run["storage"] if run.get("checkpoint_step") or run.get("parent") else None,
        avoid=frozenset(worker for worker, until in avoid.items() if until > now),
    )


def _live(run: Mapping[str, str], slots: Mapping[str, tuple[int, ...]]) -> Live:
    ends = [end for end in (_optional(run, "ends_at"), _optional(run, "deadline")) if end is not None]
    return Live(
        run_id=run["id"],
        owner=run["owner"],
        priority=int(run["priority"]),
        slots=slots,
        started_at=float(run["placed_at"]),
        ends_at=min(ends, default=None),
        deadline=_optional(run, "deadline"),
        is_stopping=run["status"] not in ("starting", "running"),
        stopped_for=run.get("stopped_for") or None,
        can_be_preempted=int(run["preemptions"]) < int(run["retries_preemptions"]),
    )


def _optional(record: Mapping[str, str], name: str) -> float | None:
    return float(record[name]) if record.get(name) else None


def _decayed(text: str, now: float) -> float:
    value, since = map(float, text.split())
    return float(value * 0.5 ** (max(0.0, now - since) / DAY))
