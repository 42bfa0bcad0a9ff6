"""The command line against the real API, with runs that no job executes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from typer.testing import CliRunner, Result

from deploy import follow
from deploy.cli import app
from service.client import ApiClient
from service.errors import ApiUnavailable, MillionwayError
from service.lifecycle import Status
from service.protocol import ClaimRequest, ExitReport
from tests.conftest import wait_until
from tests.worker.conftest import Service


def called(service: Service, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--api", service.url])


def claimed(service: Service) -> tuple[str, int]:
    claim = service.client.claim("w", ClaimRequest(host="here", slots=1, device="cpu"))
    assert claim is not None
    return claim.run_id, claim.attempt


def test_a_reason_in_brackets_is_printed_as_it_is(service: Service) -> None:
    """C++ puts its file names in brackets, which is rich's markup for a closing tag."""
    reason = "[/src/gloo/pair.cc:547] Connection closed by peer [127.0.0.1]"
    run_id = service.submit("steady").id
    claimed(service)
    service.client.exit(run_id, 1, ExitReport(outcome="faulty", reason=reason))
    for command in (["runs"], ["show", run_id]):
        result = called(service, *command)
        assert result.exit_code == 0, result.exception
        assert reason in result.stdout


def test_runs_pages_through_more_than_the_api_gives_at_once(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newest first, none twice, and a word when there are more."""
    monkeypatch.setattr(follow, "MAX_PAGE", 3)
    ids = [service.submit("steady").id for _ in range(8)]
    for limit in (2, 3, 7, 8, 1000):
        lines = called(service, "runs", "--limit", str(limit)).stdout.splitlines()
        assert [line.split()[0] for line in lines[1 : 1 + limit] if "older" not in line] == ids[::-1][:limit]
        assert ("older ones" in lines[-1]) == (limit < 8)


def test_runs_accepts_more_than_a_page_of_the_real_size(service: Service) -> None:
    """The API refuses a page of more than 200."""
    assert called(service, "runs", "--limit", "1000").exit_code == 0


def read_in_background(service: Service, run_id: str) -> tuple[threading.Thread, list[bytes]]:
    pieces: list[bytes] = []

    def read() -> None:
        with ApiClient(service.url, retries=0) as client:
            pieces.extend(follow.log_pieces(client, run_id, "rank-0.log", attempt=None, follow_it=True))

    thread = threading.Thread(target=read)
    thread.start()
    return thread, pieces


def test_followed_logs_come_whole_from_every_attempt_also_over_an_api_that_was_away(service: Service) -> None:
    """The end of an attempt is printed before the next one's begin, and the API may be killed in between."""
    run_id = service.submit("steady").id
    claimed(service)
    service.client.put_log(run_id, 1, "rank-0.log", 0, b"one\n")
    thread, pieces = read_in_background(service, run_id)
    wait_until(lambda: pieces == [b"one\n"], "the first line is read")
    service.kill_api()
    time.sleep(1.2)  # it asks twice in vain
    assert thread.is_alive()
    service.start_api()
    service.client.put_log(run_id, 1, "rank-0.log", 4, b"two\n")
    service.client.exit(run_id, 1, ExitReport(outcome="released", reason="given back"))
    assert claimed(service) == (run_id, 2)
    service.client.put_log(run_id, 2, "rank-0.log", 0, b"three\n")
    service.client.exit(run_id, 2, ExitReport(outcome="finished", reason="done"))
    thread.join(20)
    assert not thread.is_alive()
    assert b"".join(pieces) == b"one\ntwo\nthree\n"
    assert service.client.run(run_id).status == Status.SUCCEEDED


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
