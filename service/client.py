"""The API as typed methods, for the command line and the worker. Errors: service/errors.py."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from service.errors import ApiProblem, ApiUnavailable, AttemptLost, LogGap, MillionwayError
from service.protocol import EventAck, EventBatch, ExitReport, LogAck, LogFile, MetricSeries, Poll, PollReply, RunPage
from service.runs import Checkpoint, Run, Transition, Worker
from service.spec import RunSpec

T = TypeVar("T")

_checkpoints = TypeAdapter(list[Checkpoint])
_offset = TypeAdapter(int)
_log_files = TypeAdapter(list[LogFile])
_transitions = TypeAdapter(list[Transition])
_workers = TypeAdapter(list[Worker])

FIRST_DELAY_SECONDS = 0.25


class ApiClient:
    """Every call raises ApiUnavailable when there is no answer, ApiProblem when the answer is a refusal."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout_seconds: float = 10.0,
        retries: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`key`: the API key, mw_... `retries`: further tries, with doubling delays, of calls that may safely be repeated.

        Raises MillionwayError for a wrong URL, or a key that no header can carry.
        """
        try:
            parts = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise MillionwayError(f"{url!r} is no URL of an API ({error}): give one such as http://127.0.0.1:8765") from None
        if parts.scheme not in ("http", "https") or not parts.host:
            raise MillionwayError(f"{url!r} is no URL of an API: give one such as http://127.0.0.1:8765")
        if key is not None and not (key.isascii() and key.isprintable() and key.strip()):
            raise MillionwayError("the API key holds characters that no key has: give the line that `millionway keys create` printed")
        self.url = url.rstrip("/")
        self._retries, self._timeout_seconds = retries, timeout_seconds
        self._http = httpx.Client(
            base_url=self.url,
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(timeout_seconds, connect=min(timeout_seconds, 5.0)),
            transport=transport,
            trust_env=False,  # a proxy meant for the internet does not lead to the API
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    # People and their programs

    def submit(self, spec: RunSpec, *, key: str | None = None) -> Run:
        """`key` makes a repeated submission the same run; by default a new one, which makes our own retries safe."""
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        return _read(Run.model_validate_json, self._send("POST", "/runs", json=spec.model_dump(mode="json"), headers=headers))

    def runs(self, *, status: str | None = None, cursor: str | None = None, limit: int = 50) -> RunPage:
        return _read(RunPage.model_validate_json, self._get("/runs", status=status, cursor=cursor, limit=limit))

    def run(self, run_id: str) -> Run:
        return _read(Run.model_validate_json, self._get(f"/runs/{run_id}"))

    def cancel(self, run_id: str) -> Run:
        return _read(Run.model_validate_json, self._send("POST", f"/runs/{run_id}/cancel"))

    def history(self, run_id: str) -> list[Transition]:
        return _read(_transitions.validate_json, self._get(f"/runs/{run_id}/history"))

    def metrics(self, run_id: str, *, points: int | None = None) -> MetricSeries:
        return _read(MetricSeries.model_validate_json, self._get(f"/runs/{run_id}/metrics", points=points))

    def checkpoints(self, run_id: str) -> list[Checkpoint]:
        return _read(_checkpoints.validate_json, self._get(f"/runs/{run_id}/checkpoints"))

    def log_index(self, run_id: str) -> list[LogFile]:
        return _read(_log_files.validate_json, self._get(f"/runs/{run_id}/logs/index"))

    def log(
        self, run_id: str, *, attempt: int | None = None, name: str | None = None, offset: int = 0, limit: int = 1 << 20
    ) -> tuple[bytes, int]:
        """A piece of log from byte `offset`, and where the next one starts."""
        answer = self._get(f"/runs/{run_id}/logs", attempt=attempt, name=name, offset=offset, limit=limit)
        next_offset = _read(lambda _: _offset.validate_python(answer.headers.get("Millionway-Next-Offset")), answer)
        return answer.content, next_offset

    def workers(self) -> list[Worker]:
        return _read(_workers.validate_json, self._get("/workers"))

    def ready(self) -> None:
        """Returns when the API and its Redis answer."""
        self._get("/readyz")

    # Workers. Writes are tried once: the worker keeps what it could not send and has its own pace.

    def poll(self, worker: str, poll: Poll) -> PollReply:
        """What the worker is to do. Waits for news up to poll.wait_seconds longer than other calls."""
        seconds = httpx.Timeout(self._timeout_seconds + poll.wait_seconds, connect=self._timeout_seconds)
        answer = self._send("POST", f"/workers/{worker}/poll", content=poll.model_dump_json(), retries=0, timeout=seconds)
        return _read(PollReply.model_validate_json, answer)

    def events(self, run_id: str, attempt: int, batch: EventBatch) -> EventAck:
        """Raises AttemptLost, as do the other reports of an attempt."""
        return _read(EventAck.model_validate_json, self._report(run_id, attempt, "POST", "events", content=batch.model_dump_json()))

    def put_log(self, run_id: str, attempt: int, name: str, offset: int, piece: bytes) -> LogAck:
        """Raises LogGap when `offset` is beyond what is stored."""
        try:
            answer = self._report(run_id, attempt, "PUT", f"logs/{name}", params={"offset": offset}, content=piece)
        except ApiProblem as problem:
            if problem.document.get("code") == "log_gap":
                raise LogGap(name, int(problem.document["size"]), offset) from None
            raise
        return _read(LogAck.model_validate_json, answer)

    def exit(self, run_id: str, attempt: int, report: ExitReport) -> Run:
        return _read(Run.model_validate_json, self._report(run_id, attempt, "POST", "exit", content=report.model_dump_json()))

    def _report(self, run_id: str, attempt: int, method: str, what: str, **request: Any) -> httpx.Response:
        try:
            return self._send(method, f"/runs/{run_id}/attempts/{attempt}/{what}", retries=0, **request)
        except ApiProblem as problem:
            if problem.document.get("code") in ("attempt_lost", "run_not_found"):
                current, status = problem.document.get("current_attempt", 0), problem.document.get("run_status", "unknown")
                raise AttemptLost(run_id, attempt, current, status) from None
            raise

    def _get(self, path: str, **params: Any) -> httpx.Response:
        return self._send("GET", path, params={name: value for name, value in params.items() if value is not None})

    def _send(self, method: str, path: str, *, retries: int | None = None, **request: Any) -> httpx.Response:
        if "content" in request and "headers" not in request and method == "POST":
            request["headers"] = {"Content-Type": "application/json"}
        retries = self._retries if retries is None else retries
        for delay in (*(FIRST_DELAY_SECONDS * 2**n for n in range(retries)), None):
            try:
                return _checked(self._http.request(method, path, **request))
            except httpx.TransportError as error:
                away = ApiUnavailable(f"the API at {self.url} does not answer ({error or type(error).__name__})")
            except ApiUnavailable as error:
                away = error
            if delay is not None:
                time.sleep(delay)
        raise away


def _read(read: Callable[[bytes], T], answer: httpx.Response) -> T:
    try:
        return read(answer.content)
    except ValidationError:
        url = answer.url.copy_with(path="/", query=None)
        raise ApiUnavailable(f"what answers at {url} is no millionway API of this version: {answer.text[:100]!r}") from None


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    try:
        document = answer.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"title": answer.reason_phrase, "detail": answer.text[:500]}
    problem = ApiProblem(answer.status_code, document)
    if answer.status_code in (502, 503, 504):  # a proxy without an API behind it, or the API without its Redis
        raise ApiUnavailable(f"the API at {answer.url.copy_with(path='/')} cannot serve now ({problem})")
    raise problem
