"""Followed logs over an API that goes away, and what is no API of ours. The commands: tests/service/test_commands.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from deploy.follow import log_pieces
from service.client import ApiClient
from service.errors import ApiUnavailable, MillionwayError
from service.lifecycle import Status
from service.protocol import ExitReport
from tests.conftest import wait_until
from tests.worker.conftest import FakeWorker, Service


def read_in_background(service: Service, run_id: str) -> tuple[threading.Thread, list[bytes]]:
    pieces: list[bytes] = []

    def read() -> None:
        with ApiClient(service.url, key=service.admin_key, retries=8) as client:
            pieces.extend(log_pieces(client, run_id, "rank-0.log", attempt=None, follow_it=True))

    thread = threading.Thread(target=read)
    thread.start()
    return thread, pieces


def test_followed_logs_come_whole_from_every_attempt_also_over_an_api_that_was_away(service: Service) -> None:
    """The end of an attempt is printed before the next one's begin, and the API may be killed in between."""
    run, worker = service.submit("steady"), FakeWorker(service)
    first = worker.take()
    service.client.put_log(run.id, 1, "rank-0.log", 0, b"one\n")
    thread, pieces = read_in_background(service, run.id)
    wait_until(lambda: pieces == [b"one\n"], "the first line is read")
    service.kill_api()
    time.sleep(1.2)  # it asks twice in vain
    assert thread.is_alive()
    service.start_api()
    worker.poll(held=[first])
    service.client.put_log(run.id, 1, "rank-0.log", 4, b"two\n")
    service.client.exit(run.id, 1, ExitReport(worker="another", outcome="released", reason="given back"))
    second = worker.take()
    assert (second.run_id, second.attempt) == (run.id, 2)
    service.client.put_log(run.id, 2, "rank-0.log", 0, b"three\n")
    service.client.exit(run.id, 2, ExitReport(worker="another", outcome="finished", reason="done"))
    thread.join(30)
    assert not thread.is_alive()
    assert b"".join(pieces) == b"one\ntwo\nthree\n"
    assert service.client.run(run.id).status == Status.SUCCEEDED


class Elsewhere(BaseHTTPRequestHandler):
    """Answers everything with a page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    "call", [lambda client: client.runs(), lambda client: client.run("x"), lambda client: client.workers(), lambda client: client.log("x")]
)
def test_something_else_that_answers_is_named(call: Callable[[ApiClient], object]) -> None:
    """A success of another program is no answer of the API."""
    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            with ApiClient(url, retries=0) as client, pytest.raises(ApiUnavailable, match=f"{url}.* is no millionway API"):
                call(client)
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("url", ["http://[::1", "localhost:8765", "127.0.0.1", "", "http://"])
def test_a_url_that_is_none_is_named(url: str) -> None:
    """With one as it should be."""
    with pytest.raises(MillionwayError, match="is no URL of an API"):
        ApiClient(url)
