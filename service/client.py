"""The API as typed methods, for the command line, other programs and the worker. Errors: service/errors.py."""

from __future__ import annotations

import uuid
from typing import Any, Literal

import httpx
from pydantic import TypeAdapter

from service.connection import read
from service.errors import ApiProblem, AttemptLost, LogGap
from service.protocol import (
    Drain,
    EventAck,
    EventBatch,
    EventPage,
    ExitReport,
    Fork,
    LogAck,
    LogFile,
    MetricSeries,
    Plan,
    Poll,
    PollReply,
    RunPage,
    RunPatch,
    StoredFile,
)
from service.runs import Attempt, Checkpoint, Run, Transition, Worker
from service.spec import RunSpec
from service.streams import Streams

_attempts = TypeAdapter(list[Attempt])
_checkpoints = TypeAdapter(list[Checkpoint])
_log_files = TypeAdapter(list[LogFile])
_stored_files = TypeAdapter(list[StoredFile])
_transitions = TypeAdapter(list[Transition])
_workers = TypeAdapter(list[Worker])


class ApiClient(Streams):
    """Every call raises ApiUnavailable when there is no answer, ApiProblem when the answer is a refusal. What is asked for twice
    happens once, so every call of a person's is repeated while there is no answer; `edit` with `expected_edits` alone is not."""

    # People and their programs

    def submit(self, spec: RunSpec, *, key: str | None = None) -> Run:
        """`key` makes a repeated submission the same run; by default a new one, which makes our own retries safe."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return read(Run.model_validate_json, self._send("POST", "/runs", json=spec.model_dump(mode="json"), headers=headers))

    def plan(self, spec: RunSpec) -> Plan:
        """What would become of it if it were submitted now."""
        return read(Plan.model_validate_json, self._send("POST", "/runs:plan", json=spec.model_dump(mode="json")))

    def runs(
        self,
        *,
        status: str | None = None,
        owner: str | None = None,
        labels: list[str] | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> RunPage:
        """Newest first. `owner`: for an admin. `labels`: NAME=VALUE, which must all hold."""
        answer = self._get("/runs", status=status, owner=owner, label=labels, cursor=cursor, limit=limit)
        return read(RunPage.model_validate_json, answer)

    def run(self, run_id: str, *, wait_for_version: int | None = None, wait_seconds: float = 30.0) -> Run:
        """With `wait_for_version` as soon as the run's version is at least that, or after `wait_seconds` as it then is."""
        if wait_for_version is None:
            return read(Run.model_validate_json, self._get(f"/runs/{run_id}"))
        patience = httpx.Timeout(self._timeout_seconds + wait_seconds, connect=self._timeout_seconds)
        answer = self._get(f"/runs/{run_id}", patience=patience, wait_for_version=wait_for_version, timeout=wait_seconds)
        return read(Run.model_validate_json, answer)

    def cancel(self, run_id: str) -> Run:
        """Stop it for good, with a checkpoint."""
        return self._request(run_id, "cancel")

    def kill(self, run_id: str) -> Run:
        """Stop it for good, at once."""
        return self._request(run_id, "kill")

    def pause(self, run_id: str) -> Run:
        """Stop it with a checkpoint until `resume`."""
        return self._request(run_id, "pause")

    def resume(self, run_id: str) -> Run:
        return self._request(run_id, "resume")

    def edit(self, run_id: str, patch: RunPatch, *, expected_edits: int | None = None) -> Run:
        """With `expected_edits` refused (412) where the run was changed since it was read."""
        headers, retries = ({}, None) if expected_edits is None else ({"If-Match": f'"{expected_edits}"'}, 0)
        body = patch.model_dump(mode="json", exclude_unset=True)
        return read(Run.model_validate_json, self._send("PATCH", f"/runs/{run_id}", json=body, headers=headers, retries=retries))

    def fork(self, run_id: str, fork: Fork, *, key: str | None = None) -> Run:
        """A new run from a checkpoint of this one. `key` as for `submit`."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        body = fork.model_dump(mode="json", exclude_unset=True)
        return read(Run.model_validate_json, self._send("POST", f"/runs/{run_id}/fork", json=body, headers=headers))

    def history(self, run_id: str) -> list[Transition]:
        return read(_transitions.validate_json, self._get(f"/runs/{run_id}/history"))

    def attempts(self, run_id: str) -> list[Attempt]:
        return read(_attempts.validate_json, self._get(f"/runs/{run_id}/attempts"))

    def event_page(self, run_id: str, *, after: str | None = None, kinds: list[str] | None = None, limit: int = 500) -> EventPage:
        """What follows the cursor `after`; `stream_events` waits for more."""
        return read(EventPage.model_validate_json, self._get(f"/runs/{run_id}/events", after=after, kinds=kinds, limit=limit))

    def metrics(self, run_id: str, *, series: list[str] | None = None, points: int | None = None) -> MetricSeries:
        return read(MetricSeries.model_validate_json, self._get(f"/runs/{run_id}/metrics", series=series, points=points))

    def checkpoints(self, run_id: str) -> list[Checkpoint]:
        return read(_checkpoints.validate_json, self._get(f"/runs/{run_id}/checkpoints"))

    def pin(self, run_id: str, step: int, *, pinned: bool = True) -> Checkpoint:
        """Whether the checkpoint is kept whatever comes after it."""
        method = "PUT" if pinned else "DELETE"
        return read(Checkpoint.model_validate_json, self._send(method, f"/runs/{run_id}/checkpoints/{step}/pin"))

    def files(self, run_id: str, *, step: int | None = None) -> list[StoredFile]:
        """Of the checkpoint of `step`, or of the export; `download` fetches one."""
        path = f"/runs/{run_id}/export" if step is None else f"/runs/{run_id}/checkpoints/{step}/files"
        return read(_stored_files.validate_json, self._get(path))

    def log_index(self, run_id: str) -> list[LogFile]:
        return read(_log_files.validate_json, self._get(f"/runs/{run_id}/logs/index"))

    def workers(self) -> list[Worker]:
        return read(_workers.validate_json, self._get("/workers"))

    def drain(self, worker: str, mode: Literal["finish", "checkpoint"] = "checkpoint") -> Worker:
        """Nothing more is placed there; with `checkpoint`, what runs there goes elsewhere."""
        path, body = f"/workers/{worker}/drain", Drain(mode=mode).model_dump(mode="json")
        return read(Worker.model_validate_json, self._send("POST", path, json=body))

    def undrain(self, worker: str) -> Worker:
        return read(Worker.model_validate_json, self._send("DELETE", f"/workers/{worker}/drain"))

    def ready(self) -> None:
        """Returns when the API and its Redis answer."""
        self._get("/readyz")

    def _request(self, run_id: str, what: str) -> Run:
        return read(Run.model_validate_json, self._send("POST", f"/runs/{run_id}/{what}"))

    # Workers. Writes are tried once: the worker keeps what it could not send and has its own pace.

    def poll(self, worker: str, poll: Poll) -> PollReply:
        """What the worker is to do. Waits for news up to poll.wait_seconds longer than other calls."""
        seconds = httpx.Timeout(self._timeout_seconds + poll.wait_seconds, connect=self._timeout_seconds)
        answer = self._send("POST", f"/workers/{worker}/poll", content=poll.model_dump_json(), retries=0, timeout=seconds)
        return read(PollReply.model_validate_json, answer)

    def events(self, run_id: str, attempt: int, batch: EventBatch) -> EventAck:
        """Raises AttemptLost, as do the other reports of an attempt."""
        return read(EventAck.model_validate_json, self._report(run_id, attempt, "POST", "events", content=batch.model_dump_json()))

    def put_log(self, run_id: str, attempt: int, name: str, offset: int, piece: bytes) -> LogAck:
        """Raises LogGap when `offset` is beyond what is stored."""
        try:
            answer = self._report(run_id, attempt, "PUT", f"logs/{name}", params={"offset": offset}, content=piece)
        except ApiProblem as problem:
            if problem.document.get("code") == "log_gap":
                raise LogGap(name, int(problem.document["size"]), offset) from None
            raise
        return read(LogAck.model_validate_json, answer)

    def exit(self, run_id: str, attempt: int, report: ExitReport) -> Run:
        return read(Run.model_validate_json, self._report(run_id, attempt, "POST", "exit", content=report.model_dump_json()))

    def _report(self, run_id: str, attempt: int, method: str, what: str, **request: Any) -> httpx.Response:
        try:
            return self._send(method, f"/runs/{run_id}/attempts/{attempt}/{what}", retries=0, **request)
        except ApiProblem as problem:
            if problem.document.get("code") in ("attempt_lost", "run_not_found"):
                current, status = problem.document.get("current_attempt", 0), problem.document.get("run_status", "unknown")
                raise AttemptLost(run_id, attempt, current, status) from None
            raise
