"""Which rank makes the others wait."""

from __future__ import annotations

from itertools import pairwise

from trainer.straggler import REPORTS, SILENT_SECONDS, Stragglers


def test_a_rank_is_named_after_three_slow_reports_in_a_row() -> None:
    """Not after two, nor after three with a good one between them."""
    stragglers = Stragglers(4)
    slow, even = [0.1, 0.1, 0.2, 0.1], [0.1, 0.1, 0.12, 0.1]
    found = [stragglers.named(report, float(i)) for i, report in enumerate([slow, slow, even, slow, slow, slow])]
    assert found == [[], [], [], [], [], [(2, 0.2, 0.1)]]


def test_a_rank_is_named_at_most_once_in_ten_minutes() -> None:
    """And again when it is still slow then."""
    stragglers = Stragglers(3)
    times = [600.0 * i / 40 for i in range(2 * 40 + REPORTS)]
    named = [now for now in times if stragglers.named([0.1, 0.3, 0.1], now)]
    assert len(named) == 3
    assert all(later - earlier >= SILENT_SECONDS for earlier, later in pairwise(named))


def test_of_two_ranks_the_slow_one_is_compared_with_the_other() -> None:
    """The mean of the two would hide any rank that is less than three times slower."""
    stragglers = Stragglers(2)
    assert [stragglers.named([0.1, 0.2], 0.0) for _ in range(REPORTS)][-1] == [(1, 0.2, 0.1)]


def test_the_noise_of_short_steps_and_a_single_rank_are_no_straggler() -> None:
    """Milliseconds differ by more than half from chance alone."""
    short, alone = Stragglers(2), Stragglers(1)
    assert not any(short.named([0.002, 0.009], 0.0) or alone.named([5.0], 0.0) for _ in range(9))
