"""Logs: stored in order whatever is sent twice, bounded, read by offset and followed."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import routes_logs
from service.errors import ApiProblem, DiskFull, LogGap
from service.log_files import LogFiles
from service.runs import Run
from tests.conftest import wait_until
from tests.service.reading import SEGMENT_BYTES, Reading

NAME = "rank-0.log"


def read_all(logs: LogFiles, offset: int = 0, limit: int = 333) -> tuple[bytes, list[int]]:
    """What is kept, and where each gap ends."""
    content, gaps = b"", []
    while True:
        piece, end = logs.read("r", 1, NAME, offset, limit)
        if end == offset:
            return content, gaps
        if not piece:
            gaps.append(end)
        content, offset = content + piece, end


@given(st.lists(st.integers(1, 2500), min_size=1, max_size=12), st.integers(0, 1000))
def test_a_long_log_keeps_its_beginning_and_its_newest_part(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int) -> None:
    """Against the whole log: what is kept are its first and last bytes, within the bound, and offsets are those of the whole."""
    logs = LogFiles(tmp_path_factory.mktemp("logs"), 3 * SEGMENT_BYTES)
    whole = b""
    for size in sizes:
        piece = random.Random(seed).randbytes(size)
        again = min(len(whole), 700)  # the end of what is stored comes a second time
        whole += piece
        assert logs.append("r", 1, NAME, len(whole) - size - again, whole[len(whole) - size - again :]) == len(whole)
    assert [log.size for log in logs.index("r")] == [len(whole)]
    kept, gaps = read_all(logs)
    if gaps:
        assert kept == whole[:SEGMENT_BYTES] + whole[gaps[0] :]
        assert len(whole) - gaps[0] > SEGMENT_BYTES
        assert len(kept) <= 3 * SEGMENT_BYTES
    else:
        assert kept == whole
    assert (len(gaps) == 1) == (len(whole) > 3 * SEGMENT_BYTES)


def test_a_gap_names_what_is_stored(tmp_path: Path) -> None:
    """Also in a log of several segments; the sender goes on from there."""
    logs = LogFiles(tmp_path, 3 * SEGMENT_BYTES)
    logs.append("r", 1, NAME, 0, b"x" * 5500)
    with pytest.raises(LogGap) as gap:
        logs.append("r", 1, NAME, 6000, b"y")
    assert gap.value.size == 5500


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """What found room is stored and counted; the rest is stored when it comes again and there is room."""
    logs = LogFiles(tmp_path, 3 * SEGMENT_BYTES)
    logs.append("r", 1, NAME, 0, b"a" * 900)
    full = tmp_path / "r" / "0001" / f"{NAME}.1"
    full.symlink_to("/dev/full")
    with pytest.raises(DiskFull, match="No space left"):
        logs.append("r", 1, NAME, 900, b"b" * 200)
    full.unlink()
    assert logs.append("r", 1, NAME, 900, b"b" * 200) == 1100
    assert read_all(logs)[0] == b"a" * 900 + b"b" * 200


def test_a_full_disk_is_answered_507_and_the_rest_goes_on(api: Reading) -> None:
    """A problem document that names the remedy; events and other logs are taken, and reading works."""
    run = api.started()
    folder = api.directory / "logs" / run.id / "0001"
    folder.mkdir(parents=True)
    (folder / NAME).symlink_to("/dev/full")
    with pytest.raises(ApiProblem) as problem:
        api.client.put_log(run.id, 1, NAME, 0, b"step 10\n")
    assert (problem.value.status, problem.value.document["code"]) == (507, "disk_full")
    assert "free some" in problem.value.document["detail"]
    api.report(run, api.progress(10))
    assert api.client.put_log(run.id, 1, "launcher-0.log", 0, b"ok\n").size == 3
    (folder / NAME).unlink()
    assert api.client.put_log(run.id, 1, NAME, 0, b"step 10\n").size == 8
    assert api.client.log(run.id) == (b"step 10\n", 8)


def test_the_logs_of_every_rank_and_launcher_are_read_by_name(api: Reading) -> None:
    """From any byte; the newest attempt's by default."""
    run = api.started()
    for name in ("rank-0.log", "rank-17.log", "launcher-3.log"):
        api.client.put_log(run.id, 1, name, 0, f"this is {name}\n".encode())
    assert api.client.log(run.id, name="rank-17.log", offset=8, limit=7) == (b"rank-17", 15)
    assert api.client.log(run.id, name="launcher-3.log")[0] == b"this is launcher-3.log\n"
    assert api.client.log(run.id, name="rank-1.log") == (b"", 0)
    assert [log.name for log in api.client.log_index(run.id)] == ["launcher-3.log", "rank-0.log", "rank-17.log"]
    api.end(run, "crashed")
    api.take()
    assert api.client.log(run.id) == (b"", 0)
    assert api.client.log(run.id, attempt=1)[0] == b"this is rank-0.log\n"


def test_a_line_stands_for_what_is_not_kept(api: Reading) -> None:
    """And the next offset is behind it, so that a reader by offset comes to the newest part."""
    run = api.started()
    api.client.put_log(run.id, 1, NAME, 0, bytes(range(250)) * 40)
    first, offset = api.client.log(run.id)
    gap, behind = api.client.log(run.id, offset=offset)
    assert (len(first), gap, behind) == (SEGMENT_BYTES, b"[7000 bytes of this log are not kept]\n", 8000)
    assert api.client.log(run.id, offset=behind)[0] == bytes(range(250)) * 4


def follow(api: Reading, run: Run, attempt: int = 1) -> tuple[threading.Thread, list[bytes]]:
    pieces: list[bytes] = []
    thread = threading.Thread(target=lambda: pieces.extend(api.client.follow_log(run.id, attempt)))
    thread.start()
    return thread, pieces


@pytest.fixture
def _short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes_logs, "LINGER_SECONDS", 1.0)


@pytest.mark.usefixtures("_short_linger")
def test_a_log_is_followed_to_the_end_of_its_attempt(api: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes while it is read, what comes right after the end, and then no more; the next attempt is not followed."""
    run = api.started()
    api.client.put_log(run.id, 1, NAME, 0, b"one\n")
    thread, pieces = follow(api, run)
    wait_until(lambda: pieces, "what there is comes at once", seconds=2)
    api.client.put_log(run.id, 1, NAME, 4, b"two\n")
    wait_until(lambda: b"".join(pieces) == b"one\ntwo\n", "what is new comes", seconds=2)
    time.sleep(1.5)  # a quiet log is no reason to go at once
    api.end(run, "crashed")
    time.sleep(0.9)
    api.client.put_log(run.id, 1, NAME, 8, b"last words\n")
    api.take()
    thread.join(10)
    assert not thread.is_alive()
    assert b"".join(pieces) == b"one\ntwo\nlast words\n"
    monkeypatch.setattr(routes_logs, "LINGER_SECONDS", 30.0)
    begun = time.monotonic()
    assert b"".join(api.client.follow_log(run.id, 1)) == b"one\ntwo\nlast words\n"
    assert time.monotonic() - begun < 10


@pytest.mark.usefixtures("_short_linger")
def test_a_log_is_followed_across_what_is_not_kept(api: Reading) -> None:
    """The line for the middle, then the newest part, each byte once."""
    run = api.started()
    whole = random.Random(0).randbytes(10_000)
    api.client.put_log(run.id, 1, NAME, 0, whole)
    thread, pieces = follow(api, run)
    expected = whole[:SEGMENT_BYTES] + b"[7000 bytes of this log are not kept]\n" + whole[8000:]
    wait_until(lambda: b"".join(pieces) == expected, "all that is kept has come")
    api.client.put_log(run.id, 1, NAME, 10_000, b"more")
    wait_until(lambda: b"".join(pieces) == expected + b"more", "what is new comes")
    api.end(run)
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.usefixtures("_short_linger")
def test_a_run_that_never_starts_has_no_log_to_follow(api: Reading) -> None:
    """Following ends with the run, though no attempt ever was."""
    run = api.submit()
    thread, pieces = follow(api, run)
    time.sleep(0.3)
    assert thread.is_alive()
    api.client.cancel(run.id)
    thread.join(10)
    assert (thread.is_alive(), pieces) == (False, [])
