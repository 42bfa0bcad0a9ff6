"""Properties of the table that every change of status follows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.lifecycle import LIVE, TERMINAL, TRANSITIONS, Event, Status, targets


def test_a_run_ends_succeeded_failed_or_cancelled() -> None:
    """Terminal is what has no way out, computed from the table; it is these three."""
    assert {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED} == TERMINAL


def test_every_status_is_queued_held_or_ended() -> None:
    """So a run is always in the queue, under a lease, or over: none is forgotten."""
    assert {Status.QUEUED} | LIVE | TERMINAL == set(Status)
    assert not LIVE & TERMINAL


def test_every_held_run_survives_whatever_its_worker_does() -> None:
    """Each way in which an attempt can end leads somewhere from every live status, and out of it."""
    endings = {Event.FINISHED, Event.FAULTY, Event.CRASHED, Event.RELEASED, Event.LEASE_EXPIRED, Event.EXHAUSTED}
    for status in LIVE:
        for event in endings:
            assert TRANSITIONS[status, event] not in LIVE, (status, event)


def test_a_cancelled_run_is_never_queued_again() -> None:
    """Nothing leads from cancelling to anything but an end."""
    assert {after for (before, _), after in TRANSITIONS.items() if before == Status.CANCELLING} <= TERMINAL


def test_every_status_is_reached_from_the_queue() -> None:
    """No row of the table is dead."""
    reached, frontier = {Status.QUEUED}, {Status.QUEUED}
    while frontier:
        frontier = {after for (before, _), after in TRANSITIONS.items() if before in frontier} - reached
        reached |= frontier
    assert reached == set(Status)


def test_every_event_is_possible_somewhere() -> None:
    """`targets` has an entry for each, and only what the table has."""
    for event in Event:
        assert targets(event)
    assert sum(len(targets(event)) for event in Event) == len(TRANSITIONS)


@given(st.lists(st.sampled_from(list(Event)), max_size=30))
def test_no_sequence_of_events_leaves_an_end(events: list[Event]) -> None:
    """What is not in the table is refused, whatever came before."""
    status = Status.QUEUED
    for event in events:
        after = TRANSITIONS.get((status, event))
        assert after is None or status not in TERMINAL
        status = after or status
