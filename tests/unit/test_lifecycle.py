"""Properties of the table that every change of status follows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.lifecycle import LIVE, STOPPING, TERMINAL, TRANSITIONS, Event, Status, targets

SEVERITY = {Status.PREEMPTING: 1, Status.PAUSING: 2, Status.CANCELLING: 3}
AS_TOLD = {Status.PREEMPTING: Status.QUEUED, Status.PAUSING: Status.PAUSED, Status.CANCELLING: Status.CANCELLED}


def test_a_run_ends_succeeded_failed_or_cancelled() -> None:
    """Terminal is what has no way out, computed from the table; it is these three."""
    assert {Status.SUCCEEDED, Status.FAILED, Status.CANCELLED} == TERMINAL


def test_every_status_is_queued_paused_held_or_ended() -> None:
    """So a run is always in the queue, put aside by a person, under a lease, or over: none is forgotten."""
    groups = [{Status.QUEUED}, {Status.PAUSED}, LIVE, TERMINAL]
    assert sum(map(len, groups)) == len(Status)
    assert set().union(*groups) == set(Status)
    assert set(SEVERITY) == STOPPING
    assert STOPPING < LIVE


def test_every_held_run_survives_whatever_its_workers_do() -> None:
    """Each way in which an attempt can end leads somewhere from every live status, and out of it."""
    endings = {Event.FINISHED, Event.FAULTY, Event.CRASHED, Event.LOST, Event.RELEASED, Event.EXHAUSTED}
    for status in LIVE:
        for event in endings | ({Event.STOPPED} if status in STOPPING else set()):
            assert TRANSITIONS[status, event] not in LIVE, (status, event)


def test_a_stop_only_grows_more_severe() -> None:
    """Among the statuses of a stopping attempt nothing leads back, and every stop that is more severe is possible."""
    for (before, event), after in TRANSITIONS.items():
        if before in STOPPING and after in LIVE:
            assert SEVERITY[after] >= SEVERITY[before], (before, event)
    for status in LIVE - {Status.CANCELLING}:
        assert TRANSITIONS[status, Event.CANCEL] == Status.CANCELLING
    assert TRANSITIONS[Status.PREEMPTING, Event.PAUSE] == Status.PAUSING


def test_a_stopped_run_is_where_it_was_told_to_be() -> None:
    """However its attempt ends, except that work that is done is done, and that what cannot succeed has failed."""
    for status, told in AS_TOLD.items():
        for event in (Event.STOPPED, Event.CRASHED, Event.LOST, Event.RELEASED):
            assert TRANSITIONS[status, event] == told
        assert TRANSITIONS[status, Event.FINISHED] == Status.SUCCEEDED
        for event in (Event.FAULTY, Event.EXHAUSTED):
            assert TRANSITIONS[status, event] in (Status.FAILED, told)


def test_a_cancelled_run_is_never_queued_again() -> None:
    """From cancelling, once more or harder, there is only an end."""
    assert {after for (before, _), after in TRANSITIONS.items() if before == Status.CANCELLING} <= TERMINAL | {Status.CANCELLING}


def test_only_the_scheduler_starts_an_attempt() -> None:
    """And only of a queued run."""
    entering = {(before, event) for (before, event), after in TRANSITIONS.items() if after in LIVE and before not in LIVE}
    assert entering == {(Status.QUEUED, Event.PLACE)}


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
