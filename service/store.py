"""Runs, their queue, their attempts and workers, in Redis. Each method is one atomic call of the script in store*.lua."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, Self

from redis.asyncio import Redis

from service.errors import RunIdTaken
from service.event_effects import effects
from service.events import JobEvent
from service.lifecycle import Status
from service.protocol import EventAck, EventPage, ExitReport, MetricSeries, Poll, PollReply, RunPage, RunPatch
from service.redis_call import Script, connect
from service.runs import Attempt, Checkpoint, Parent, Run, Transition, Worker
from service.scheduling.model import Cluster, Place, Stop
from service.series import curves
from service.spec import RunSpec
from service.store_records import attempt_record, cluster_of, event_record, run_fields, run_record, worker_record

RUN_ID_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's: no letter that reads like another. Ten of them are 50 random bits."""
QUEUE_WINDOW = 1000
"""Queued runs that the scheduler looks at, of all owners together."""


class Store:
    """Every method raises StoreUnavailable when Redis does not answer, and RunNotFound where it takes a run's id."""

    def __init__(self, redis: Redis, lease_seconds: float, gang_start_seconds: float = 60.0, max_queued: int = 10_000) -> None:
        self.redis, self._call = redis, Script(redis).call
        self.lease_seconds, self.gang_start_seconds, self.max_queued = lease_seconds, gang_start_seconds, max_queued

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, url: str, lease_seconds: float, gang_start_seconds: float = 60.0, max_queued: int = 10_000
    ) -> AsyncIterator[Self]:
        async with connect(url) as redis:
            yield cls(redis, lease_seconds, gang_start_seconds, max_queued)

    async def ping(self) -> None:
        """Returns when Redis answers."""
        await self._call("counts", statuses=[])

    # People and their programs

    async def submit(self, spec: RunSpec, owner: str, key: str | None = None, parent: Parent | None = None) -> Run:
        """A new run in the queue; with `key` seen before from this owner, the run that it made. `parent`: the checkpoint that it starts
        from, which is pinned. Raises IdempotencyConflict, QueueFull, CheckpointNotFound."""
        fields = {**run_fields(spec), "owner": owner}
        if parent:
            fields["parent"] = parent.model_dump_json()
        digest = hashlib.sha256(f"{fields['spec']} {fields.get('parent')}".encode()).hexdigest()
        pin = parent.model_dump() if parent else None
        for last_try in (False, False, True):
            fields["id"] = self.new_run_id()
            try:
                reply = await self._call("submit", fields=fields, key=key, digest=digest, max_queued=self.max_queued, pin=pin)
                break
            except RunIdTaken:
                if last_try:
                    raise
        return run_record(reply["run"])

    def new_run_id(self) -> str:
        return "".join(secrets.choice(RUN_ID_ALPHABET) for _ in range(10))

    async def get(self, run_id: str) -> Run:
        return run_record((await self._call("get", run_id=run_id))["runs"][0])

    async def list_runs(
        self,
        *,
        status: Status | None = None,
        owner: str | None = None,
        labels: Mapping[str, str] | None = None,
        cursor: int | None = None,
        limit: int = 50,
    ) -> RunPage:
        """Newest first. `cursor` is the last page's."""
        reply = await self._call("list", status=status, owner=owner, labels=labels or None, below=cursor, limit=limit)
        runs = [run_record(record) for record in reply["runs"]]
        return RunPage(runs=runs, has_more=reply["has_more"], next_cursor=reply.get("next_cursor"))

    async def request(self, run_id: str, request: Literal["pause", "resume", "cancel", "kill"]) -> Run:
        """Once or more often. Raises TransitionRefused where the run's status does not allow it."""
        await self._call("request", run_id=run_id, request=request)
        return await self.get(run_id)

    async def edit(self, run_id: str, patch: RunPatch, expected_edits: int | None = None) -> Run:
        """Raises EditConflict where the run has seen another number of edits."""
        await self._call("edit", run_id=run_id, expected=expected_edits, **patch.model_dump(exclude_none=False))
        return await self.get(run_id)

    async def pin(self, run_id: str, step: int, *, pinned: bool) -> Checkpoint:
        """Raises CheckpointNotFound."""
        reply = await self._call("pin", run_id=run_id, step=step, pinned=pinned)
        return Checkpoint.model_validate_json(reply["checkpoint"]).model_copy(update={"pinned": pinned})

    async def history(self, run_id: str) -> list[Transition]:
        """Oldest first."""
        reply = await self._call("history", run_id=run_id)
        return [Transition.model_validate(entry["fields"]) for entry in reply["entries"]]

    async def attempts(self, run_id: str) -> list[Attempt]:
        """Oldest first, the last hundred."""
        return [attempt_record(record) for record in (await self._call("attempts", run_id=run_id))["attempts"]]

    async def events(self, run_id: str, *, after: str | None = None, kinds: Sequence[str] | None = None, limit: int = 500) -> EventPage:
        """Transitions and what the job reported, oldest first, that follow the cursor `after`; about a MiB at most."""
        reply = await self._call("events", run_id=run_id, after=after, kinds=kinds or None, limit=limit)
        return EventPage(events=[event_record(entry) for entry in reply.pop("entries")], **reply)

    async def series(self, run_id: str, names: Sequence[str] | None = None, points: int = 500) -> MetricSeries:
        """The curves, in at most `points` buckets of steps, each with its minimum and maximum."""
        reply = await self._call("series", run_id=run_id)
        return MetricSeries(series=curves([json.loads(text) for text in reply["buckets"]], names, points))

    async def checkpoints(self, run_id: str) -> list[Checkpoint]:
        """Those that are still on disk, oldest first."""
        reply = await self._call("checkpoints", run_id=run_id)
        pins = {int(step) for step in reply["pins"]}
        found = sorted(map(Checkpoint.model_validate_json, reply["checkpoints"]), key=lambda checkpoint: checkpoint.step)
        return [checkpoint.model_copy(update={"pinned": checkpoint.step in pins}) for checkpoint in found]

    async def newest_attempt(self, run_id: str, at_least: int = 0) -> int:
        """0 before the first. Raises AttemptLost where the run has not come to attempt `at_least`."""
        number: int = (await self._call("newest_attempt", run_id=run_id, at_least=at_least))["attempt"]
        return number

    async def counts(self) -> dict[str, Any]:
        """Runs by status, ended attempts by outcome, and since when the oldest queued run waits."""
        return await self._call("counts", statuses=[str(status) for status in Status])

    async def throughput(self, key: str) -> float | None:
        """Images per second of one rank, as last reported by a run like this (store_records.throughput_key)."""
        value: float | None = (await self._call("throughput", key=key)).get("images_per_second")
        return value

    async def workers(self) -> list[Worker]:
        """Last heard of first; silent ones for a day."""
        reply = await self._call("workers")
        return [worker_record(record, reply["now"]) for record in reply["workers"]]

    async def drain(self, worker: str, mode: Literal["", "finish", "checkpoint"]) -> Worker:
        """With mode "" it takes work again. Raises WorkerNotFound."""
        await self._call("drain", worker=worker, mode=mode)
        return next(found for found in await self.workers() if found.id == worker)

    # Workers

    async def poll(self, worker: str, poll: Poll) -> PollReply:
        """Renews the worker's lease; what it should start, stop and abort. Raises WorkerNameTaken, WorkerReplaced."""
        cuda = poll.device.startswith("cuda")
        reply = await self._call("poll", worker=worker, cuda=cuda, lease_seconds=self.lease_seconds, **poll.model_dump())
        for offer in reply["offers"]:
            offer["spec"] = json.loads(offer["spec"])
            offer["parent"] = json.loads(offer["parent"]) if offer.get("parent") else None
        return PollReply(lease_seconds=self.lease_seconds, offers=_lists(reply["offers"]), instructions=_lists(reply["instructions"]))

    async def apply_events(self, run_id: str, attempt: int, events: Sequence[JobEvent]) -> EventAck:
        """Each event once, however often it is sent. Raises EventGap, and applies none, where one before them is missing; AttemptLost."""
        in_order = [effects(event, attempt) for event in sorted(events, key=lambda event: event.seq)]
        return EventAck(last_seq=(await self._call("apply_events", run_id=run_id, attempt=attempt, events=in_order))["last_seq"])

    async def exit(self, run_id: str, attempt: int, report: ExitReport) -> Run:
        """A node's last word on the attempt. Raises AttemptLost where the worker was no member of it."""
        await self._call("exit", run_id=run_id, attempt=attempt, **report.model_dump(exclude_none=True))
        return await self.get(run_id)

    # The control plane itself

    async def expire(self) -> tuple[list[str], list[str]]:
        """Ends the attempts of workers that were not heard of within their lease, and of gangs that not all took in time. Returns the
        runs' ids and the workers'.

        To be called much more often than every half lease: the first call after such a time gives every lease a full
        period, because no worker could renew meanwhile.
        """
        reply = await self._call("expire", lease_seconds=self.lease_seconds, gang_start_seconds=self.gang_start_seconds)
        return list(reply["lost"]), list(reply["workers"])

    async def snapshot(self, holder: str | None = None) -> Cluster | None:
        """What the scheduler decides from. With `holder`, None where another holder schedules."""
        reply = await self._call("snapshot", holder=holder, limit=QUEUE_WINDOW)
        return cluster_of(reply) if reply else None

    async def place(self, place: Place) -> bool:
        """All of the gang or nothing: False where the run or a slot is no longer free."""
        members = [{"worker": worker, "slots": list(slots)} for worker, slots in place.slots.items()]
        ranks = place.shape[1]
        return bool((await self._call("place", run_id=place.run_id, members=members, ranks_per_node=ranks))["placed"])

    async def stop(self, stop: Stop) -> bool:
        """False where the run is not there to be stopped any more."""
        reply = await self._call("stop", run_id=stop.run_id, cause=stop.cause, reason=stop.reason, in_favour_of=stop.in_favour_of)
        return bool(reply["stopping"])


def _lists(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lua writes an empty list as {}."""
    return [{**message, "pins": list(message["pins"])} for message in messages]
