"""The event spool counts without gaps, whoever writes and whatever was cut off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from trainer.spool import EventSpool


def seqs(path: Path) -> list[int]:
    return [json.loads(line)["seq"] for line in path.read_text().splitlines()]


def test_two_writers_count_on_from_each_other(tmp_path: Path) -> None:
    """A rank that fails appends to rank 0's spool."""
    path = tmp_path / "events.jsonl"
    first, second = EventSpool(path), EventSpool(path)
    first.append("phase", phase="indexing")
    second.append("failed", code="internal", message="x" * 10_000)
    first.append("phase", phase="training")
    assert seqs(path) == [1, 2, 3]


@pytest.mark.parametrize("torn", [b'{"kind":"pha', b'{"seq": 9}' * 1000])
def test_what_a_killed_writer_left_of_a_line_is_cut_off(torn: bytes, tmp_path: Path) -> None:
    """The next line is whole, and its number follows the last whole line's."""
    path = tmp_path / "events.jsonl"
    EventSpool(path).append("phase", phase="indexing")
    path.write_bytes(path.read_bytes() + torn)
    EventSpool(path).append("phase", phase="training")
    assert seqs(path) == [1, 2]


def test_a_torn_first_line_is_no_line(tmp_path: Path) -> None:
    """A spool that holds nothing whole starts at 1."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind"')
    EventSpool(path).append("phase", phase="indexing")
    assert seqs(path) == [1]


def test_an_event_outside_the_schema_is_our_mistake(tmp_path: Path) -> None:
    """It fails where it is written, not where it is read."""
    with pytest.raises(ValidationError):
        EventSpool(tmp_path / "events.jsonl").append("phase", phase="lunch")
