"""The shipper against the real API, over a line that loses requests and replies."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from service.client import ApiClient
from service.errors import ApiUnavailable
from service.layout import AttemptDir
from service.protocol import ClaimRequest
from service.worker.shipping import Shipper
from tests.worker.conftest import Service


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


def write_event(spool: Path, seq: int) -> bytes:
    numbers = {"num_steps": 5000, "epoch": 1.0, "num_epochs": 1.0, "loss": 1.0, "learning_rate": 0.1}
    rest = {"images_per_second": 1.0, "data_wait": 0.0, "eta_seconds": 1.0}
    line = json.dumps({"seq": seq, "time": 1.0, "kind": "progress", "step": seq, **numbers, **rest}).encode() + b"\n"
    with spool.open("ab") as file:
        file.write(line)
    return line


def test_a_line_that_loses_requests_and_answers_loses_and_doubles_nothing(service: Service, tmp_path: Path) -> None:
    """What was not acknowledged is sent again from the files; what arrives twice is applied once."""
    run = service.submit("steady")
    claim = service.client.claim("w", ClaimRequest(host="here", slots=1, device="cpu"))
    assert claim is not None
    directory = AttemptDir(tmp_path / "attempt")
    directory.path.mkdir()
    for seq in range(1, 2001):
        write_event(directory.events, seq)
    text = b"".join(b"%d: a line of the log\n" % number for number in range(60_000))
    directory.rank_log(0).write_bytes(text)
    line = LossyLine()
    with ApiClient(service.url, retries=0, transport=line) as client:
        shipper = Shipper(client, run.id, 1, directory)
        for _ in range(100):
            try:
                if not shipper.ship():
                    break
            except ApiUnavailable:
                continue
            finally:
                service.client.heartbeat(run.id, 1)
    assert line.num_calls > 12, "nothing was lost: the test shows nothing"

    steps: list[int] = []
    after = None
    while True:
        page = service.client.metrics(run.id, after=after)
        steps += [metric.metric.step for metric in page.metrics]
        after = page.next_cursor
        if not page.has_more:
            break
    assert steps == list(range(1, 2001))
    stored, offset = b"", 0
    while True:
        piece, offset = service.client.log(run.id, offset=offset)
        if not piece:
            break
        stored += piece
    assert stored == text


def test_a_line_that_is_still_being_written_is_not_sent(service: Service, tmp_path: Path) -> None:
    """Only what ends with a line feed is an event; the rest follows when it is whole."""
    run = service.submit("steady")
    assert service.client.claim("w", ClaimRequest(host="here", slots=1, device="cpu")) is not None
    directory = AttemptDir(tmp_path / "attempt")
    directory.path.mkdir()
    write_event(directory.events, 1)
    whole = write_event(tmp_path / "other", 2)
    with directory.events.open("ab") as file:
        file.write(whole[:40])
    shipper = Shipper(service.client, run.id, 1, directory)
    assert not shipper.ship()
    assert len(service.client.metrics(run.id).metrics) == 1
    with directory.events.open("ab") as file:
        file.write(whole[40:])
    assert not shipper.ship()
    assert [metric.metric.step for metric in service.client.metrics(run.id).metrics] == [1, 2]


def test_a_line_of_the_spool_that_is_no_event_holds_back_no_other(service: Service, tmp_path: Path) -> None:
    """It is logged and left out."""
    run = service.submit("steady")
    assert service.client.claim("w", ClaimRequest(host="here", slots=1, device="cpu")) is not None
    directory = AttemptDir(tmp_path / "attempt")
    directory.path.mkdir()
    write_event(directory.events, 1)
    with directory.events.open("ab") as file:
        file.write(b'{"seq": \n{"kind": "progress"}\n')
    write_event(directory.events, 2)
    assert not Shipper(service.client, run.id, 1, directory).ship()
    assert [metric.metric.step for metric in service.client.metrics(run.id).metrics] == [1, 2]
