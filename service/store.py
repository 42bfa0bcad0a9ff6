"""Runs, their queue, leases, events and workers, in Redis. Each method is one atomic call of the script in store*.lua."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.errors import AttemptLost, EventGap, IdempotencyConflict, RunNotFound, StoreUnavailable, TransitionRefused
from service.event_effects import effects
from service.events import JobEvent
from service.lifecycle import Status
from service.protocol import Claim, ClaimRequest, EventAck, ExitReport, HeartbeatReply, Metric, MetricPage, RunPage
from service.redis_script import script_text
from service.runs import Checkpoint, Run, Transition, Worker
from service.spec import RunSpec, stored_spec
from service.waiting import wait_reason

RUN_ID_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's: no letter that reads like another. Ten of them are 50 random bits."""

ERRORS = {
    "attempt_lost": AttemptLost,
    "event_gap": EventGap,
    "idempotency_conflict": IdempotencyConflict,
    "run_not_found": RunNotFound,
    "transition_refused": TransitionRefused,
}


class Store:
    """Every method raises StoreUnavailable when Redis does not answer, and RunNotFound where it takes a run's id."""

    def __init__(self, redis: Redis, lease_seconds: float) -> None:
        self._redis = redis
        self._script = redis.register_script(script_text())
        self.lease_seconds = lease_seconds

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, lease_seconds: float) -> AsyncIterator[Self]:
        """Needs no Redis yet: each call connects when it must. No call is repeated here; the API's clients know which may be."""
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=32,
            timeout=5,
            socket_timeout=5,
            socket_connect_timeout=2,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
        redis = Redis(connection_pool=pool)
        try:
            yield cls(redis, lease_seconds)
        finally:
            await redis.aclose()
            await pool.disconnect()

    async def ping(self) -> None:
        """Returns when Redis answers."""
        await self._call("workers")

    # People and their programs

    async def submit(self, spec: RunSpec, key: str | None = None) -> Run:
        """A new run at the end of the queue; with `key` seen before, the run that it made. Raises IdempotencyConflict."""
        text = spec.model_dump_json()
        fields = {
            "id": "".join(secrets.choice(RUN_ID_ALPHABET) for _ in range(10)),
            "name": spec.name,
            "spec": text,
            "nodes": spec.resources.nodes,
            "ranks_per_node": spec.resources.ranks_per_node,
            "device": spec.resources.device,
            "max_attempts": spec.resources.max_attempts,
        }
        reply = await self._call("submit", fields=fields, key=key, digest=hashlib.sha256(text.encode()).hexdigest())
        return await self.get(reply["run_id"])

    async def get(self, run_id: str) -> Run:
        return self._runs(await self._call("get", run_id=run_id))[0]

    async def list_runs(self, *, status: Status | None = None, cursor: int | None = None, limit: int = 50) -> RunPage:
        """Newest first. `cursor` is the last page's."""
        reply = await self._call("list", status=status, below=cursor, limit=limit)
        last = reply["runs"][-1]["sequence"] if reply["has_more"] else None
        return RunPage(runs=self._runs(reply), has_more=reply["has_more"], next_cursor=last)

    async def cancel(self, run_id: str) -> Run:
        """Once or more often. Raises TransitionRefused where the run has ended otherwise."""
        await self._call("cancel", run_id=run_id)
        return await self.get(run_id)

    async def history(self, run_id: str) -> list[Transition]:
        """Oldest first."""
        reply = await self._call("history", run_id=run_id)
        return [Transition.model_validate(entry["fields"]) for entry in reply["entries"]]

    async def metrics(self, run_id: str, *, after: str | None = None, limit: int = 1000) -> MetricPage:
        """Progress and evaluations, oldest first, that follow the cursor `after`."""
        reply = await self._call("metrics", run_id=run_id, after=after, limit=limit)
        entries = reply["entries"] or []
        return MetricPage(
            metrics=[Metric(attempt=int(e["id"].partition("-")[0]), metric=json.loads(e["fields"]["event"])) for e in entries],
            has_more=reply["has_more"],
            next_cursor=entries[-1]["id"] if entries else after,
        )

    async def checkpoints(self, run_id: str) -> list[Checkpoint]:
        """Those that are still on disk, oldest first."""
        reply = await self._call("checkpoints", run_id=run_id)
        return sorted(map(Checkpoint.model_validate_json, reply["checkpoints"]), key=lambda checkpoint: checkpoint.step)

    async def workers(self) -> list[Worker]:
        """Last heard of first; silent ones for a day."""
        return self._workers(await self._call("workers"))

    # Workers

    async def claim(self, worker: str, request: ClaimRequest) -> Claim | None:
        """The oldest queued run that fits the worker, with a lease; None where there is none."""
        cuda = request.device.startswith("cuda")
        reply = await self._call("claim", worker=worker, cuda=cuda, **request.model_dump())
        if not reply:
            return None
        spec = stored_spec(reply["spec"])
        return Claim(run_id=reply["run_id"], attempt=reply["attempt"], spec=spec, lease_seconds=self.lease_seconds)

    async def heartbeat(self, run_id: str, attempt: int) -> HeartbeatReply:
        """Renews the lease. Raises AttemptLost, as do the other reports."""
        reply = await self._call("heartbeat", run_id=run_id, attempt=attempt)
        return HeartbeatReply(command=reply["command"], lease_seconds=self.lease_seconds)

    async def apply_events(self, run_id: str, attempt: int, events: Sequence[JobEvent]) -> EventAck:
        """Each event once, however often it is sent. Raises EventGap, and applies none, where one before them is missing."""
        in_order = [effects(event, attempt) for event in sorted(events, key=lambda event: event.seq)]
        return EventAck(last_seq=(await self._call("apply_events", run_id=run_id, attempt=attempt, events=in_order))["last_seq"])

    async def exit(self, run_id: str, attempt: int, report: ExitReport) -> Run:
        """The attempt's end. Raises AttemptLost, and TransitionRefused for `stopped` where nobody asked for it."""
        await self._call("exit", run_id=run_id, attempt=attempt, event=report.outcome, reason=report.reason)
        return await self.get(run_id)

    async def newest_attempt(self, run_id: str, at_least: int = 0) -> int:
        """0 before the first claim. Raises AttemptLost where the run has not come to attempt `at_least`."""
        number: int = (await self._call("newest_attempt", run_id=run_id, at_least=at_least))["attempt"]
        return number

    # The control plane itself

    async def expire_leases(self) -> list[str]:
        """Takes back the runs whose workers were not heard of within their lease. Returns their ids.

        To be called much more often than every half lease: the first call after such a time gives every lease a full
        period, because no worker could renew meanwhile.
        """
        return list((await self._call("expire_leases"))["run_ids"])

    async def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        arguments = {name: value for name, value in arguments.items() if value is not None}
        try:
            text = await self._script(args=[operation, json.dumps(arguments | {"lease_seconds": self.lease_seconds})])
        except (RedisConnectionError, RedisTimeoutError, OSError) as error:
            raise StoreUnavailable(f"Redis does not answer ({error}): start it, or correct MILLIONWAY_REDIS_URL") from error
        except RedisError as error:
            if "MISCONF" in str(error) or "OOM" in str(error):
                raise StoreUnavailable(f"Redis takes no writes: give it disk and memory ({error})") from error
            raise
        reply: dict[str, Any] = json.loads(text)
        if problem := reply.pop("error", None):
            raise ERRORS[problem](**reply)
        return reply

    def _workers(self, reply: Mapping[str, Any]) -> list[Worker]:
        silent = reply["now"] - self.lease_seconds
        return [Worker.model_validate({**worker, "alive": float(worker["last_seen"]) >= silent}) for worker in reply["workers"]]

    def _runs(self, reply: Mapping[str, Any]) -> list[Run]:
        workers = self._workers(reply)
        return [_run(record, workers) for record in reply["runs"]]


def _run(record: Mapping[str, str], workers: Sequence[Worker]) -> Run:
    spec, reason = stored_spec(record["spec"]), record["reason"]
    if record["status"] == Status.QUEUED:
        reason = "; ".join(part for part in (reason, wait_reason(spec.resources, workers)) if part)
    parsed = {name: json.loads(record[name]) for name in ("progress", "warnings") if name in record}
    return Run.model_validate({**record, **parsed, "reason": reason, "spec": spec})
