"""Structured logs on stdout: JSON in a file or a pipe, readable lines in a terminal."""

from __future__ import annotations

import sys

import structlog


def configure_logs() -> None:
    """Called once, by a process's main."""
    in_terminal = sys.stdout.isatty()
    # Tracebacks without local variables: one of them may be a key or a password.
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if in_terminal else [structlog.processors.format_exc_info]),
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
            if in_terminal
            else structlog.processors.JSONRenderer(),
        ],
    )
