"""Who holds a state directory."""

from __future__ import annotations

import fcntl
import threading
import time
from pathlib import Path

import pytest

from deploy.state import StackError, StateDir


def test_the_url_of_a_stack_that_was_killed_is_not_taken_for_the_next_ones(tmp_path: Path) -> None:
    """The file that a killed stack left is gone as soon as another holds the directory."""
    state = StateDir(tmp_path)
    state.stack.write_text('{"url": "http://127.0.0.1:1"}')
    with state.held():
        assert state.running_url() is None
        state.stack.write_text('{"url": "http://127.0.0.1:2"}')
        assert state.running_url() == "http://127.0.0.1:2"
    assert state.running_url() is None


def test_a_look_at_the_lock_does_not_keep_a_stack_from_starting(tmp_path: Path) -> None:
    """`running_url` holds it shared for an instant."""
    with (tmp_path / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)

        def let_go() -> None:
            time.sleep(0.05)
            fcntl.flock(file, fcntl.LOCK_UN)

        looking = threading.Thread(target=let_go)
        looking.start()
        with StateDir(tmp_path).held():
            looking.join()


def test_a_second_stack_is_refused_with_the_first_ones_process(tmp_path: Path) -> None:
    """The holder keeps the directory, and the refused one leaves its file alone."""
    state = StateDir(tmp_path)
    with state.held():
        state.stack.write_text('{"url": "http://127.0.0.1:2"}')
        with pytest.raises(StackError, match=r"a stack runs in .* already, process [0-9]+"), StateDir(tmp_path).held():
            pass
        assert state.running_url() == "http://127.0.0.1:2"
