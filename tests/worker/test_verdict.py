"""What the end of a job means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from service.layout import AttemptDir
from service.worker.verdict import exit_report


def spool(directory: AttemptDir, code: str, message: str) -> None:
    events = [
        {"seq": 1, "time": 1.0, "kind": "phase", "phase": "training"},
        {"seq": 2, "time": 2.0, "kind": "failed", "code": code, "message": message},
    ]
    directory.events.write_text("".join(json.dumps(event) + "\n" for event in events))


@pytest.mark.parametrize(
    ("code", "failed", "told_to", "outcome"),
    [
        (0, None, None, "finished"),
        (0, None, "stopped", "finished"),
        (1, None, "stopped", "stopped"),
        (-9, None, "stopped", "stopped"),
        (1, None, "released", "released"),
        (1, "bad_spec", None, "faulty"),
        (1, "bad_data", None, "faulty"),
        (1, "non_finite_loss", "released", "faulty"),
        (1, "out_of_memory", None, "faulty"),
        (1, "disk", None, "crashed"),
        (1, "internal", None, "crashed"),
        (1, "internal", "released", "released"),
        (64, None, None, "faulty"),
        (75, None, None, "released"),
        (1, None, None, "crashed"),
        (-11, None, None, "crashed"),
    ],
)
def test_the_outcome_follows_from_exit_code_last_words_and_what_it_was_told(
    tmp_path: Path, code: int, failed: str | None, told_to: Literal["stopped", "released"] | None, outcome: str
) -> None:
    """The table that service/lifecycle.py builds upon."""
    directory = AttemptDir(tmp_path)
    if failed is not None:
        spool(directory, failed, "why, and what to do")
    report = exit_report(code, directory, told_to=told_to, killed=False)
    assert report.outcome == outcome
    assert report.reason


def test_a_failure_is_told_in_the_jobs_own_words(tmp_path: Path) -> None:
    """The trainer knows the remedy."""
    spool(AttemptDir(tmp_path), "non_finite_loss", "the loss became NaN between steps 11 and 20: halve the learning rate")
    report = exit_report(1, AttemptDir(tmp_path), told_to=None, killed=False)
    assert report.reason == "the loss became NaN between steps 11 and 20: halve the learning rate"


def test_the_cause_is_told_rather_than_what_followed_from_it(tmp_path: Path) -> None:
    """One rank finds the fault; the others then lose their peer and report that, also before it."""
    directory = AttemptDir(tmp_path)
    told = [("internal", "Connection closed by peer"), ("bad_data", "a.png is damaged: remove it"), ("internal", "Connection closed")]
    lines = [json.dumps({"seq": 1 + i, "time": 1.0, "kind": "failed", "code": c, "message": m}) for i, (c, m) in enumerate(told)]
    directory.events.write_text("\n".join(lines) + "\n")
    report = exit_report(1, directory, told_to=None, killed=False)
    assert (report.outcome, report.reason) == ("faulty", "a.png is damaged: remove it")


def test_a_rank_that_died_without_a_word_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    """PyTorch's launcher exits with 1 and says which rank was first, and how."""
    directory = AttemptDir(tmp_path)
    directory.launcher_log.write_text("E1124 api.py:991] failed (exitcode: -9) local_rank: 1 (pid: 77) of binary: python\n")
    directory.rank_log(0).write_text("rank 0 was fine\n")
    directory.rank_log(1).write_text("step 3\nstep 4\n")
    report = exit_report(1, directory, told_to=None, killed=False)
    assert (report.outcome, report.exit_code) == ("crashed", -9)
    assert "rank 1 was ended by signal 9" in report.reason
    assert "memory" in report.reason
    assert report.reason.endswith("step 3\nstep 4")


@pytest.mark.parametrize(
    ("code", "rank_code", "told"),
    [
        ("internal", -9, "rank 1 was ended by signal 9"),
        ("internal", -15, "Connection closed by peer"),
        ("internal", 1, "Connection closed by peer"),
        ("disk", -9, "Connection closed by peer"),
    ],
)
def test_a_rank_that_a_signal_ended_is_the_cause_of_its_peers_lost_connection(tmp_path: Path, code: str, rank_code: int, told: str) -> None:
    """The kernel ends a rank when memory runs out; a survivor then reports its lost peer. SIGTERM is the launcher's own."""
    directory = AttemptDir(tmp_path)
    spool(directory, code, "Connection closed by peer")
    directory.launcher_log.write_text(f"failed (exitcode: {rank_code}) local_rank: 1 (pid: 77) of binary: python\n")
    report = exit_report(1, directory, told_to=None, killed=False)
    assert report.outcome == "crashed"
    assert report.reason.startswith(told)
    assert ("when memory runs out" in report.reason) == (rank_code == -9 and code == "internal")


@pytest.mark.parametrize("codes", [("internal", "disk", "disk"), ("disk", "internal", "disk")])
def test_the_first_report_counts_that_is_not_of_a_lost_peer(tmp_path: Path, codes: tuple[str, ...]) -> None:
    """In whatever order the ranks wrote."""
    events = [{"seq": seq, "time": 1.0, "kind": "failed", "code": code, "message": f"{code} {seq}"} for seq, code in enumerate(codes, 1)]
    AttemptDir(tmp_path).events.write_text("".join(json.dumps(event) + "\n" for event in events))
    report = exit_report(1, AttemptDir(tmp_path), told_to=None, killed=False)
    assert report.reason == f"disk {codes.index('disk') + 1}"


def test_a_rank_that_stopped_itself_gives_the_run_back(tmp_path: Path) -> None:
    """Exit code 75 of a rank, whatever its launcher makes of it: a checkpoint is written, the run goes on elsewhere."""
    directory = AttemptDir(tmp_path)
    directory.launcher_log.write_text("failed (exitcode: 75) local_rank: 0 (pid: 77) of binary: python\n")
    assert exit_report(1, directory, told_to=None, killed=False).outcome == "released"


def test_a_reason_fits_the_protocol_however_long_the_log_is(tmp_path: Path) -> None:
    """Its end is kept."""
    directory = AttemptDir(tmp_path)
    directory.launcher_log.write_text("x" * 9000 + "\nthe last words\n")
    report = exit_report(1, directory, told_to=None, killed=False)
    assert len(report.reason) <= 4000
    assert report.reason.endswith("the last words")
