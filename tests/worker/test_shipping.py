"""The shipper against the real API, over a line that loses requests and replies."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
import redis

from service.client import ApiClient
from service.errors import ApiProblem, ApiUnavailable
from service.layout import AttemptDir
from service.lifecycle import Status
from service.protocol import ExitReport
from service.worker.link import Link
from service.worker.shipping import Shipper
from tests.conftest import wait_until
from tests.worker.conftest import FakeWorker, Service


class LossyLine(httpx.BaseTransport):
    """Of three calls, one arrives, one is lost on its way, and one is carried out with its answer lost."""

    def __init__(self) -> None:
        self._line, self.num_calls = httpx.HTTPTransport(), 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.num_calls += 1
        if self.num_calls % 3 == 1:
            raise httpx.ConnectError("the request is lost")
        response = self._line.handle_request(request)
        if self.num_calls % 3 == 2:
            response.read()
            response.close()
            raise httpx.ReadTimeout("the answer is lost")
        return response

    def close(self) -> None:
        self._line.close()


class RefusingLine(httpx.BaseTransport):
    def __init__(self, status: int) -> None:
        self._line = httpx.HTTPTransport()
        self.status: int | None = status

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(self.status, json={"title": "refused"}) if self.status else self._line.handle_request(request)

    def close(self) -> None:
        self._line.close()


def write_event(spool: Path, seq: int) -> bytes:
    numbers = {"num_steps": 5000, "epoch": 1.0, "num_epochs": 1.0, "loss": 1.0, "learning_rate": 0.1}
    rest = {"images_per_second": 1.0, "data_wait": 0.0, "eta_seconds": 1.0}
    line = json.dumps({"seq": seq, "time": 1.0, "kind": "progress", "step": seq, **numbers, **rest}).encode() + b"\n"
    with spool.open("ab") as file:
        file.write(line)
    return line


def ship_all(shipper: Shipper) -> None:
    """Until nothing is new, in a bounded number of passes."""
    for _ in range(20):
        if not shipper.ship():
            return
    pytest.fail("the shipper does not come to an end")


@pytest.fixture
def attempt(service: Service, tmp_path: Path) -> tuple[Shipper, AttemptDir, str]:
    """A run that a worker holds, its attempt's directory, and what ships it."""
    run = service.submit("steady")
    FakeWorker(service).take()
    directory = AttemptDir(tmp_path / "attempt")
    directory.path.mkdir()
    return shipper_of(service.client, run.id, directory), directory, run.id


def shipper_of(client: ApiClient, run_id: str, directory: AttemptDir) -> Shipper:
    return Shipper(client, run_id, 1, directory, logs=[directory.rank_log(0)])


def test_a_line_that_loses_requests_and_answers_loses_and_doubles_nothing(service: Service, tmp_path: Path) -> None:
    """What was not acknowledged is sent again from the files; what arrives twice is applied once."""
    run = service.submit("steady")
    worker = FakeWorker(service)
    held = worker.take()
    directory = AttemptDir(tmp_path / "attempt")
    directory.path.mkdir()
    for seq in range(1, 801):
        write_event(directory.events, seq)
    text = b"".join(b"%d: a line of the log\n" % number for number in range(60_000))
    directory.rank_log(0).write_bytes(text)
    line = LossyLine()
    with ApiClient(service.url, key=service.worker_key, retries=0, transport=line) as client:
        shipper = shipper_of(client, run.id, directory)
        for _ in range(200):
            worker.poll(held=[held])
            try:
                if not shipper.ship():
                    break
            except ApiUnavailable:
                continue
    assert line.num_calls > 12, "nothing was lost: the test shows nothing"

    assert service.steps(run.id) == list(range(1, 801))
    stored, offset = b"", 0
    while True:
        piece, offset = service.client.log(run.id, offset=offset)
        if not piece:
            break
        stored += piece
    assert stored == text


def test_logs_of_an_attempt_that_is_over_are_still_stored_and_its_events_are_not(
    service: Service, attempt: tuple[Shipper, AttemptDir, str]
) -> None:
    """The shipper learns it from the first refusal."""
    shipper, directory, run_id = attempt
    service.client.exit(run_id, 1, ExitReport(worker="another", outcome="lost", reason="gone"))
    write_event(directory.events, 1)
    directory.rank_log(0).write_text("the last words\n")
    ship_all(shipper)
    assert not shipper.is_welcome
    assert service.steps(run_id) == []
    assert service.client.log(run_id, attempt=1)[0] == b"the last words\n"


@pytest.mark.parametrize("status", [401, 403, 429])
def test_a_refusal_of_the_sender_loses_nothing_of_what_was_sent(
    service: Service, attempt: tuple[Shipper, AttemptDir, str], status: int
) -> None:
    """A key that is being replaced, or too many requests: the same is sent again later."""
    _, directory, run_id = attempt
    line = RefusingLine(status)
    directory.rank_log(0).write_text("a line\n")
    with ApiClient(service.url, key=service.worker_key, retries=0, transport=line) as client:
        shipper = shipper_of(client, run_id, directory)
        with pytest.raises(ApiProblem):
            shipper.ship()
        write_event(directory.events, 1)
        with pytest.raises(ApiProblem):
            shipper.ship()
        line.status = None
        ship_all(shipper)
    assert service.steps(run_id) == [1]
    assert service.client.log(run_id)[0] == b"a line\n"


def test_a_line_that_is_still_being_written_is_not_sent(service: Service, attempt: tuple[Shipper, AttemptDir, str], tmp_path: Path) -> None:
    """Only what ends with a line feed is an event; the rest follows when it is whole."""
    shipper, directory, run_id = attempt
    write_event(directory.events, 1)
    whole = write_event(tmp_path / "other", 2)
    with directory.events.open("ab") as file:
        file.write(whole[:40])
    ship_all(shipper)
    assert service.steps(run_id) == [1]
    with directory.events.open("ab") as file:
        file.write(whole[40:])
    ship_all(shipper)
    assert service.steps(run_id) == [1, 2]


def test_an_unreadable_line_of_the_spool_holds_back_no_event(service: Service, attempt: tuple[Shipper, AttemptDir, str]) -> None:
    """A warning stands for a number that is missing, since the API refuses a gap; no event that is there is taken for it."""
    shipper, directory, run_id = attempt
    there, missing = [1], []
    write_event(directory.events, 1)
    for line in (
        b'{"seq":',
        b'{"kind": "progress"}',
        b"\xff",
        b"[1]",
        b'{"seq": 1e99}',
        b'{"seq": 2000000000000}',
        b'{"message": "\\ud800"}',
    ):
        with directory.events.open("ab") as file:
            file.write(line + b"\n")
        ship_all(shipper)
        there.append(there[-1] + 1)  # the line was one too many
        write_event(directory.events, there[-1])
        with directory.events.open("ab") as file:
            file.write(line + b"\n")
        missing.append(there[-1] + 1)  # the line is in the place of an event
        there.append(there[-1] + 2)
        write_event(directory.events, there[-1])
        ship_all(shipper)
    assert service.steps(run_id) == there
    warnings = service.client.run(run_id).warnings
    assert warnings == [f"event {seq} cannot be read from the job's spool" for seq in missing]


def test_an_event_that_the_api_refuses_arrives_as_a_warning_and_loses_no_other(
    service: Service, attempt: tuple[Shipper, AttemptDir, str]
) -> None:
    """One without a time, and one that is larger than a body may be."""
    shipper, directory, run_id = attempt
    write_event(directory.events, 1)
    for refused in (
        {"seq": 2, "kind": "phase", "time": "noon", "phase": "training"},
        {"seq": 3, "kind": "warned", "time": 1, "message": "x" * (5 << 20)},
    ):
        with directory.events.open("ab") as file:
            file.write(json.dumps(refused).encode() + b"\n")
    write_event(directory.events, 4)
    ship_all(shipper)
    assert service.steps(run_id) == [1, 4]
    warnings = service.client.run(run_id).warnings
    assert [warning.split(" is refused: ")[0] for warning in warnings] == ["event 2 (phase)", "event 3 (warned)"]


def test_events_that_the_api_lost_are_sent_again_from_the_spool(service: Service, attempt: tuple[Shipper, AttemptDir, str]) -> None:
    """A Redis that came back with older data knows less than it had acknowledged: nothing is missing afterwards."""
    shipper, directory, run_id = attempt
    for seq in range(1, 6):
        write_event(directory.events, seq)
    ship_all(shipper)
    with redis.Redis.from_url(service.redis_url) as store:
        store.hset(f"millionway:run:{run_id}", "last_seq", 2)
        store.delete(f"millionway:events:{run_id}")
    write_event(directory.events, 6)
    ship_all(shipper)
    assert service.steps(run_id) == [3, 4, 5, 6]


def test_a_gap_that_sending_again_does_not_fill_is_passed_over(service: Service, attempt: tuple[Shipper, AttemptDir, str]) -> None:
    """The spool is sent again once, not for ever."""
    shipper, directory, run_id = attempt
    write_event(directory.events, 1)
    with redis.Redis.from_url(service.redis_url) as store:
        store.hset(f"millionway:run:{run_id}", "last_seq", -5)
    ship_all(shipper)
    assert service.steps(run_id) == []


def test_logs_that_the_api_cannot_store_do_not_hold_back_the_report(
    service: Service, attempt: tuple[Shipper, AttemptDir, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as heartbeats succeed it is tried for a while; then the run ends, and its reason says what is missing."""
    shipper, directory, run_id = attempt
    monkeypatch.setattr("service.worker.link.STUCK_SECONDS", 0.2)  # well within the lease of these tests
    blocked = service.directory / "api" / "logs" / run_id
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("a file where the API wants a folder")
    write_event(directory.events, 1)
    directory.rank_log(0).write_text("a line")
    link, report = Link(service.client, run_id, 1, shipper), ExitReport(worker="another", outcome="finished", reason="done")
    assert not link.deliver(report, urgent=False), "it is tried again first"
    wait_until(lambda: link.deliver(report, urgent=False), "the report is delivered")
    run = service.client.run(run_id)
    assert run.status == Status.SUCCEEDED
    assert "not all stored here" in run.reason
    assert service.steps(run_id) == [1]
