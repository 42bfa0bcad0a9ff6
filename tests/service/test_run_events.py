"""What happened to a run, read in pages or followed as server-sent events."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api import routes_events
from service.client import ApiClient
from service.errors import ApiProblem
from service.launch import free_port
from service.protocol import EventPage
from service.runs import RunEvent
from service.settings import Settings
from service.store import Store
from tests.conftest import running_api, running_redis, wait_until
from tests.service.reading import Reading


def blocks(answer: httpx.Response) -> Iterator[dict[str, str]]:
    """The stream's events and comments, field by field, as the standard has them."""
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        if not line:
            yield fields
            fields = {}
        else:
            name, _, value = line.partition(": ")
            fields[name or ":"] = value.removeprefix(": ")


def open_stream(api: Reading, run_id: str, **headers: str) -> Any:
    return api.http.stream("GET", f"/runs/{run_id}/events", headers={"Accept": "text/event-stream", **headers})


def test_pages_hold_every_event_once_and_in_order(api: Reading) -> None:
    """Whatever their size: transitions and what the job reported, as one numbered row."""
    run = api.started()
    api.report(run, *(api.progress(step) for step in range(1, 30)))
    api.end(run)
    whole = api.client.event_page(run.id)
    assert [event.kind for event in whole.events] == ["transition"] * 2 + ["started", "transition"] + ["progress"] * 29 + ["transition"]
    assert [event.cursor for event in whole.events] == [str(number) for number in range(1, 35)]
    assert (whole.has_more, whole.truncated, whole.status) == (False, False, "succeeded")
    seen, after, has_more = [], None, True
    while has_more:
        page = api.client.event_page(run.id, after=after, limit=7)
        seen, after, has_more = seen + page.events, page.next_cursor, page.has_more
    assert seen == whole.events
    assert api.client.event_page(run.id, after=after).events == []


def test_a_page_of_some_kinds_goes_on_behind_the_others(api: Reading) -> None:
    """The cursor passes what was left out, so that nothing is looked at twice."""
    run = api.started()
    api.report(run, *(api.progress(step) for step in range(1, 6)), api.event("warned", message="slow disk"), api.progress(6))
    page = api.client.event_page(run.id, kinds=["warned"])
    assert [(event.kind, event.data["message"]) for event in page.events] == [("warned", "slow disk")]
    assert (page.has_more, page.next_cursor) == (False, api.client.event_page(run.id).next_cursor)
    pair = api.client.event_page(run.id, kinds=["warned", "transition"], limit=2)
    assert ([event.kind for event in pair.events], pair.has_more) == (["transition", "transition"], True)


def test_a_cursor_older_than_what_is_kept_is_told_so(api: Reading) -> None:
    """The newest thousand or so are kept: who asks for what came before learns that there was more."""
    run = api.started()
    api.report(run, *(api.progress(step) for step in range(1, 1500)))
    page = api.client.event_page(run.id, after="5", limit=1000)
    oldest = int(page.events[0].cursor)
    assert page.truncated
    assert 1000 <= 1504 - oldest <= 1100
    assert not api.client.event_page(run.id, after=str(oldest - 1)).truncated
    assert api.client.event_page(run.id, after=str(oldest - 2)).truncated


def test_a_cursor_from_the_future_starts_over(api: Reading) -> None:
    """A store that was put back to an earlier time knows less than its readers: they are told, and read it again."""
    run = api.started()
    page = api.client.event_page(run.id, after="1000")
    assert page.truncated
    assert [event.cursor for event in page.events] == ["1", "2", "3", "4"]


def test_a_large_page_is_cut_by_its_bytes(api: Reading) -> None:
    """So that a reader of a thousand long events holds a MiB or two of the server, not more."""
    run = api.started()
    for _ in range(20):
        api.report(run, api.event("warned", message="x" * 200_000))
    page = api.client.event_page(run.id, limit=1000)
    assert page.has_more
    assert sum(len(event.model_dump_json()) for event in page.events) < 1.5 * 2**20


@pytest.mark.parametrize("cursor", ["x", "-1", "1-0", "9" * 16])
def test_a_cursor_that_is_none_is_refused(api: Reading, cursor: str) -> None:
    """422, wherever it comes from."""
    run = api.submit()
    assert api.http.get(f"/runs/{run.id}/events", params={"after": cursor}).status_code == 422
    assert api.http.get(f"/runs/{run.id}/events", headers={"Last-Event-ID": cursor}).status_code == 422


def test_a_stream_has_what_the_pages_have_and_ends_with_the_run(api: Reading) -> None:
    """id is the cursor, event the kind, data the event; `end` comes last."""
    run = api.started()
    api.report(run, *(api.progress(step) for step in range(1, 6)))
    received: list[dict[str, str]] = []
    with open_stream(api, run.id) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        reader = threading.Thread(target=lambda: received.extend(blocks(answer)))
        reader.start()
        wait_until(lambda: len(received) == 9, "what there was is there")
        api.report(run, api.progress(6), api.event("warned", message="line one\nline two \u2028 \x85"))
        api.end(run)
        reader.join(5)
        assert not reader.is_alive()
    events = api.client.event_page(run.id).events
    assert received[-1] == {"event": "end", "data": '{"status": "succeeded"}'}
    assert [(block["id"], block["event"]) for block in received[:-1]] == [(event.cursor, event.kind) for event in events]


def test_a_stream_wakes_at_once(api: Reading) -> None:
    """An event arrives when it happens, not with the next heartbeat."""
    run = api.started()
    with open_stream(api, run.id, **{"Last-Event-ID": api.client.event_page(run.id).next_cursor}) as answer:
        stream = blocks(answer)
        for step in range(1, 4):
            begun = time.monotonic()
            api.report(run, api.progress(step))
            assert json.loads(next(stream)["data"])["data"]["step"] == step
            assert time.monotonic() - begun < 10


def test_a_silent_stream_has_a_heartbeat(api: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment, which keeps proxies and clients from taking silence for an end."""
    monkeypatch.setattr(routes_events, "HEARTBEAT_SECONDS", 0.05)
    run = api.started()
    with open_stream(api, run.id, **{"Last-Event-ID": api.client.event_page(run.id).next_cursor}) as answer:
        stream = blocks(answer)
        assert [set(next(stream)) for _ in range(3)] == [{":"}] * 3


def test_a_stream_that_is_opened_anew_goes_on_where_it_was(api: Reading) -> None:
    """Last-Event-ID comes before the `after` of the address, which a browser cannot change."""
    run = api.started()
    api.report(run, *(api.progress(step) for step in range(1, 6)))
    api.end(run)
    headers = {"Accept": "text/event-stream", "Last-Event-ID": "7"}
    with api.http.stream("GET", f"/runs/{run.id}/events?after=1", headers=headers) as answer:
        assert [block.get("id") for block in blocks(answer)] == ["8", "9", "10", None]


def test_a_browser_that_has_seen_the_end_is_told_to_stop(api: Reading) -> None:
    """An EventSource opens an ended stream again for ever, but for 204."""
    run = api.started()
    api.end(run)
    newest = api.client.event_page(run.id).next_cursor
    with open_stream(api, run.id, **{"Last-Event-ID": newest}) as answer:
        assert answer.status_code == 204
    with open_stream(api, run.id) as answer:
        assert [block["event"] for block in blocks(answer)][-1] == "end"


def test_the_client_follows_a_run_to_its_end(api: Reading) -> None:
    """Every event once, with separators that only look like ends of lines left whole."""
    run = api.started()
    message = "line one\nline two \u2028 \x85"
    api.report(run, *(api.progress(step) for step in range(1, 6)), api.event("warned", message=message))
    seen: list[RunEvent] = []
    reader = threading.Thread(target=lambda: seen.extend(api.client.stream_events(run.id)))
    reader.start()
    wait_until(lambda: len(seen) == 10, "what there was is there")
    api.end(run)
    reader.join(5)
    assert not reader.is_alive()
    assert seen == api.client.event_page(run.id).events
    assert seen[-2].data["message"] == message
    assert list(api.client.stream_events(run.id, after=seen[-1].cursor)) == []


def test_a_reader_that_was_away_too_long_learns_that_it_missed_some(api: Reading) -> None:
    """In place of what is not kept comes an event `truncated`, and the number of the next is beyond."""
    run = api.started()
    api.report(run, *(api.progress(step) for step in range(1, 1500)))
    api.end(run)
    seen = list(api.client.stream_events(run.id, after="3"))
    assert (seen[0].kind, seen[0].cursor) == ("truncated", "3")
    assert [event.cursor for event in seen[1:]] == [event.cursor for event in api.client.event_page(run.id, limit=1000).events]
    assert (seen[-1].cursor, 200 <= len(seen) <= 301) == ("1504", True)


def test_the_server_reads_no_further_than_its_reader(api: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a slow reader has not taken stays in Redis, and others are served meanwhile."""
    run = api.started()
    for _ in range(60):
        api.report(run, api.event("failed", code="internal", message="x" * 300_000))
    pages, events = [], Store.events

    async def counted(self: Store, *arguments: Any, **options: Any) -> EventPage:
        pages.append(await events(self, *arguments, **options))
        return pages[-1]

    monkeypatch.setattr(Store, "events", counted)
    with open_stream(api, run.id) as answer:
        next(answer.iter_raw(1024))
        time.sleep(0.5)
        assert api.client.run(run.id).status == "running"
        assert sum(len(page.model_dump_json()) for page in pages) < 60 * 300_000 / 1.5


def test_a_stream_of_several_pages_is_whole(api: Reading) -> None:
    """Also when the run has ended before it began."""
    run = api.started()
    for _ in range(12):
        api.report(run, api.event("failed", code="internal", message="x" * 300_000))
    api.end(run)
    begun = time.monotonic()
    assert [event.cursor for event in api.client.stream_events(run.id)] == [str(number) for number in range(1, 18)]
    assert time.monotonic() - begun < 5


def test_a_stream_outlives_a_restart_of_redis(tmp_path: Path) -> None:
    """It has heartbeats meanwhile, then what happened since, each event once."""
    port = free_port()
    settings = Settings(redis_url=f"redis://127.0.0.1:{port}/0", state_dir=tmp_path, keys_dir=tmp_path / "keys")
    with running_api(settings) as url:
        with running_redis(tmp_path / "redis", port):
            wait_until((tmp_path / "keys" / "admin.key").exists, "the first keys are there")
            api = Reading(url, (tmp_path / "keys" / "admin.key").read_text().strip(), tmp_path)
            run = api.started()
            seen: list[RunEvent] = []
            reader = threading.Thread(target=lambda: seen.extend(api.client.stream_events(run.id)))
            reader.start()
            wait_until(lambda: len(seen) == 4, "what there was is there")
        with running_redis(tmp_path / "redis", port):
            api.report(run, api.progress(10))
            wait_until(lambda: len(seen) == 5, "what is new is there")
            api.end(run)
            reader.join(5)
            assert not reader.is_alive()
            assert seen == api.client.event_page(run.id).events
        with api.client, api.http:
            pass


def test_nobody_reads_the_events_of_anothers_run(api: Reading) -> None:
    """To a stranger the run does not exist, as a page or as a stream."""
    with ApiClient(api.url, key=(api.directory / "keys" / "worker.key").read_text().strip(), retries=0) as worker:
        run = api.submit()
        for read in (worker.event_page, worker.history, worker.attempts, worker.checkpoints):
            with pytest.raises(ApiProblem) as refusal:
                read(run.id)
            assert refusal.value.status == 403
        with pytest.raises(ApiProblem):
            next(worker.stream_events(run.id))


def test_attempts_tell_where_and_how_they_ended(api: Reading) -> None:
    """Each with its placement, its end and the worker's words; the run goes on with the next."""
    run = api.started()
    api.end(run, "crashed", "rank 1 ran out of memory: use a smaller batch")
    api.take()
    first, second = api.client.attempts(run.id)
    assert (first.number, first.outcome, first.members[0].worker, first.members[0].reason) == (
        1,
        "crashed",
        "w1",
        "rank 1 ran out of memory: use a smaller batch",
    )
    assert (second.number, second.ended_at) == (2, None)
    assert [step.event for step in api.client.history(run.id)] == ["submit", "place", "started", "crashed", "place"]


def test_checkpoints_carry_loss_and_knn_and_are_pinned(api: Reading) -> None:
    """The loss is that of the last report before it, also from an earlier batch; a pin is set and removed, again and again."""
    run = api.started()
    api.report(run, api.progress(10, loss=3.25))
    api.report(run, api.checkpointed(10), api.progress(20, loss=2.5), api.checkpointed(20, knn=81.5))
    assert [(kept.step, kept.loss, kept.knn, kept.pinned) for kept in api.client.checkpoints(run.id)] == [
        (10, 3.25, None, False),
        (20, 2.5, 81.5, False),
    ]
    assert [api.client.pin(run.id, 10).pinned for _ in range(2)] == [True, True]
    assert [kept.pinned for kept in api.client.checkpoints(run.id)] == [True, False]
    assert not api.client.pin(run.id, 10, pinned=False).pinned
    with pytest.raises(ApiProblem, match="no checkpoint of step 15"):
        api.client.pin(run.id, 15)
