"""What the end of a job means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.launch import Launch
from service.layout import AttemptDir
from service.protocol import ExitReport
from service.worker.verdict import LOST_PEERS, ToldTo, exit_report, signature

LOST = "Connection closed by peer [10.0.0.7]:29500"


def report_of(code: int, directory: AttemptDir, told_to: ToldTo | None = None, *, num_nodes: int = 1, node_rank: int = 0) -> ExitReport:
    launch = Launch(directory.path, 1, num_nodes=num_nodes, node_rank=node_rank, ranks_per_node=2, master_port=29500)
    return exit_report("w1", code, directory, launch, told_to=told_to)


def spool(directory: AttemptDir, code: str, message: str) -> None:
    events = [
        {"seq": 1, "time": 1.0, "kind": "phase", "phase": "training"},
        {"seq": 2, "time": 2.0, "kind": "failed", "code": code, "message": message},
    ]
    directory.events.write_text("".join(json.dumps(event) + "\n" for event in events))


def test_of_a_clean_end_only_the_leads_log_is_reported(tmp_path: Path) -> None:
    """Of a failure every node's."""
    directory = AttemptDir(tmp_path)
    for node in (0, 1):
        directory.launcher_log(node).write_text("the last line\n")
        for told_to, has_log in (("stopped", node == 0), ("released", node == 0), ("aborted", node == 0), (None, True)):
            report = report_of(1, directory, told_to, num_nodes=2, node_rank=node)
            assert report.log_tail == ("the last line" if has_log else ""), (node, told_to)


@pytest.mark.parametrize(
    ("code", "failed", "told_to", "outcome"),
    [
        (0, None, None, "finished"),
        (0, None, "stopped", "finished"),
        (1, None, "stopped", "stopped"),
        (-9, None, "stopped", "stopped"),
        (1, "internal", "stopped", "stopped"),
        (1, "bad_data", "stopped", "faulty"),
        (1, None, "released", "released"),
        (-9, None, "aborted", "stopped"),
        (-9, "bad_data", "aborted", "faulty"),
        (1, "bad_spec", None, "faulty"),
        (1, "bad_data", None, "faulty"),
        (1, "non_finite_loss", "released", "faulty"),
        (1, "out_of_memory", None, "faulty"),
        (1, "disk", None, "crashed"),
        (1, "storage", None, "lost"),
        (1, "internal", None, "crashed"),
        (1, "internal", "released", "released"),
        (64, None, None, "faulty"),
        (75, None, None, "released"),
        (76, None, None, "lost"),
        (1, None, None, "crashed"),
        (-11, None, None, "lost"),
        (-9, None, None, "lost"),
    ],
)
def test_the_outcome_follows_from_exit_code_last_words_and_what_it_was_told(
    tmp_path: Path, code: int, failed: str | None, told_to: ToldTo | None, outcome: str
) -> None:
    """The table that service/lifecycle.py builds upon."""
    directory = AttemptDir(tmp_path)
    if failed is not None:
        spool(directory, failed, "why, and what to do")
    report = report_of(code, directory, told_to)
    assert report.outcome == outcome
    assert report.reason


def test_a_failure_is_told_in_the_jobs_own_words(tmp_path: Path) -> None:
    """The trainer knows the remedy."""
    spool(AttemptDir(tmp_path), "non_finite_loss", "the loss became NaN between steps 11 and 20: halve the learning rate")
    report = report_of(1, AttemptDir(tmp_path))
    assert report.reason == "the loss became NaN between steps 11 and 20: halve the learning rate"


def test_the_cause_is_told_rather_than_what_followed_from_it(tmp_path: Path) -> None:
    """One rank finds the fault; the others then lose their peer and report that, also before it."""
    directory = AttemptDir(tmp_path)
    told = [("internal", "Connection closed by peer"), ("bad_data", "a.png is damaged: remove it"), ("internal", "Connection closed")]
    lines = [json.dumps({"seq": 1 + i, "time": 1.0, "kind": "failed", "code": c, "message": m}) for i, (c, m) in enumerate(told)]
    directory.events.write_text("\n".join(lines) + "\n")
    report = report_of(1, directory)
    assert (report.outcome, report.reason) == ("faulty", "a.png is damaged: remove it")


def test_a_rank_that_died_without_a_word_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    """PyTorch's launcher exits with 1 and says which rank was first, and how."""
    directory = AttemptDir(tmp_path)
    directory.launcher_log().write_text("E1124 api.py:991] failed (exitcode: -9) local_rank: 1 (pid: 77) of binary: python\n")
    directory.rank_log(0).write_text("rank 0 was fine\n")
    directory.rank_log(1).write_text("step 3\nstep 4\n")
    report = report_of(1, directory)
    assert (report.outcome, report.exit_code, report.signature) == ("lost", -9, None)
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
    directory.launcher_log().write_text(f"failed (exitcode: {rank_code}) local_rank: 1 (pid: 77) of binary: python\n")
    report = report_of(1, directory)
    assert report.outcome == ("lost" if "signal 9" in told else "crashed")
    assert report.reason.startswith(told)
    assert ("when memory runs out" in report.reason) == (rank_code == -9 and code == "internal")


@pytest.mark.parametrize("codes", [("internal", "disk", "disk"), ("disk", "internal", "disk")])
def test_the_first_report_counts_that_is_not_of_a_lost_peer(tmp_path: Path, codes: tuple[str, ...]) -> None:
    """In whatever order the ranks wrote."""
    events = [{"seq": seq, "time": 1.0, "kind": "failed", "code": code, "message": f"{code} {seq}"} for seq, code in enumerate(codes, 1)]
    AttemptDir(tmp_path).events.write_text("".join(json.dumps(event) + "\n" for event in events))
    report = report_of(1, AttemptDir(tmp_path))
    assert report.reason == f"disk {codes.index('disk') + 1}"


def test_a_rank_that_stopped_itself_gives_the_run_back(tmp_path: Path) -> None:
    """Exit code 75 of a rank, whatever its launcher makes of it: a checkpoint is written, the run goes on elsewhere."""
    directory = AttemptDir(tmp_path)
    directory.launcher_log().write_text("failed (exitcode: 75) local_rank: 0 (pid: 77) of binary: python\n")
    assert report_of(1, directory).outcome == "released"


@pytest.mark.parametrize("code", [-9, -11, 1])
def test_of_ranks_that_fail_together_the_one_that_a_signal_ended_is_the_cause(tmp_path: Path, code: int) -> None:
    """The launcher may see the survivor first; its list at the end has them all."""
    directory = AttemptDir(tmp_path)
    spool(directory, "internal", LOST)
    listed = f"  rank      : 1 (local_rank: 1)\n  exitcode  : {code} (pid: 78)\n"
    directory.launcher_log().write_text(f"failed (exitcode: 1) local_rank: 0 (pid: 77) of binary: python\n{listed}")
    report = report_of(1, directory)
    assert report.outcome == ("lost" if code < 0 else "crashed")
    assert report.signature is None


def test_a_node_that_only_lost_its_peers_says_so(tmp_path: Path) -> None:
    """Without a signature: the error is another node's."""
    spool(AttemptDir(tmp_path), "internal", LOST)
    report = report_of(1, AttemptDir(tmp_path), num_nodes=2)
    assert (report.outcome, report.signature) == ("lost", None)
    assert report.reason.startswith(LOST_PEERS)


@pytest.mark.parametrize("order", [1, -1])
def test_an_error_that_the_job_named_counts_before_a_lost_peer_on_every_node(tmp_path: Path, order: int) -> None:
    """The nodes share the spool, and a loss may be written first."""
    directory = AttemptDir(tmp_path)
    messages = ["KeyError: 'stem'", LOST][::order]
    lines = [json.dumps({"seq": 1 + i, "time": 1.0, "kind": "failed", "code": "internal", "message": m}) for i, m in enumerate(messages)]
    directory.events.write_text("\n".join(lines) + "\n")
    for node_rank in (0, 1):
        report = report_of(1, directory, num_nodes=2, node_rank=node_rank)
        assert (report.outcome, report.reason, report.signature) == ("crashed", "KeyError: 'stem'", "internal: KeyError: 'stem'")


def test_a_traceback_without_a_report_gives_the_signature(tmp_path: Path) -> None:
    """An import that fails comes before the trainer can report."""
    directory = AttemptDir(tmp_path)
    directory.launcher_log(1).write_text("failed (exitcode: 1) local_rank: 1 (pid: 77) of binary: python\n")
    trace = "Traceback (most recent call last):\n  File 'a.py', line 3\nImportError: libcuda.so.1: no such file\n"
    directory.rank_log(3).write_text(trace + "bye\n")
    report = report_of(1, directory, num_nodes=2, node_rank=1)
    assert (report.outcome, report.signature) == ("crashed", "traceback: ImportError: libcuda.so.#: no such file")
    assert "ImportError" in report.log_tail


def test_a_taken_port_is_the_infrastructures_failure(tmp_path: Path) -> None:
    """Another attempt finds another port."""
    directory = AttemptDir(tmp_path)
    directory.launcher_log().write_text("torch.distributed.DistNetworkError: The server socket ... EADDRINUSE, address already in use\n")
    report = report_of(1, directory)
    assert (report.outcome, report.signature) == ("lost", None)
    assert "127.0.0.1:29500" in report.reason


@pytest.mark.parametrize(
    "other",
    [
        "ValueError: 7 images of /data/b at 0x7fee12 in rank 3",
        "ValueError: 12345 images of /mnt/c/d.png at 0xabc in rank 0",
    ],
)
def test_two_occurrences_of_one_error_have_one_signature(other: str) -> None:
    """Numbers, paths and addresses differ; the words do not."""
    assert signature("internal", other) == signature("internal", "ValueError: 1 images of /data/a at 0x1 in rank 1")
    assert signature("internal", "ValueError: no images") != signature("internal", "KeyError: no images")
    assert len(signature("internal", "x " * 500)) <= 200


def test_a_reason_fits_the_protocol_however_long_the_log_is(tmp_path: Path) -> None:
    """Its end is kept."""
    directory = AttemptDir(tmp_path)
    directory.launcher_log().write_text("x" * 9000 + "\nthe last words\n")
    report = report_of(1, directory)
    assert len(report.reason) <= 4000
    assert report.reason.endswith("the last words")
