"""What file systems at URLs do otherwise than a disk: packages of their own, errors of their own, and servers that are away for a while."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import Any, TypeVar

from trainer.errors import BadData, TrainerError

T = TypeVar("T")

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}
"""What to install for a protocol, of the extras in pyproject.toml."""
_OF_THE_REQUEST = (
    *(FileNotFoundError, IsADirectoryError, TrainerError),
    *(ValueError, TypeError, AttributeError, LookupError, ImportError, MemoryError),
)
"""However often it is made."""
_PASSING = (408, 429)
"""Of the answers below 500."""
TRIES = 3
"""Of a request that alone has no answer."""
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.25, 5.0


def open_file_system(url: str) -> Any:
    """fsspec's. Raises BadData where the protocol is unknown or needs a package that is not installed."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)[0]
    except (ImportError, ValueError) as error:
        extra = _EXTRAS.get(url.partition("://")[0])
        remedy = f": pip install 'millionway[{extra}]'" if extra and isinstance(error, ImportError) else ""
        raise BadData(f"{url!r} cannot be opened: {error}{remedy}") from None


def as_os_error(error: Exception) -> OSError:
    """What any library says, in the terms of files; EINVAL where the request itself, or what it asks for, is at fault: `may_pass` knows
    its own answer again."""
    error = _behind(error)
    status = getattr(error, "status", None)  # of aiohttp
    if status in (401, 403):
        return PermissionError(errno.EACCES, f"the server answers {status}: credentials are missing, or do not suffice")
    if type(error).__name__ == "NoCredentialsError":  # of botocore
        return PermissionError(errno.EACCES, str(error))
    if (isinstance(error, FileNotFoundError) and not error.strerror) or status in (404, 410):
        return FileNotFoundError(errno.ENOENT, "there is nothing at this address")
    if isinstance(error, OSError) and error.strerror:
        return error
    kind = PermissionError if isinstance(error, PermissionError) else OSError
    is_for_good = isinstance(error, _OF_THE_REQUEST) or (isinstance(status, int) and 0 < status < 500 and status not in _PASSING)
    return kind(errno.EINVAL if is_for_good else errno.EIO, f"{type(error).__name__}: {error}")


def may_pass(error: Exception) -> bool:
    """Whether the same request may be answered later: no connection, a server that is busy or broken, an answer cut off."""
    error = _behind(error)
    status = getattr(error, "status", None)
    if isinstance(status, int) and status:
        return status in _PASSING or status >= 500
    if isinstance(error, OSError) and (error.errno == errno.EINVAL or (type(error) is OSError and error.errno is None)):
        return False  # a range that is not there; pyarrow's, of a damaged file
    return not isinstance(as_os_error(error), PermissionError) and not isinstance(error, _OF_THE_REQUEST)


def _behind(error: Exception) -> Exception:
    """fsspec says of a web server that is away that there is no such file, and means that it could not find out its size."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, Exception) else error


class Patience:
    """Asks a server again where it may answer later. Shared by the threads that ask it."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: how long a server that answers nobody is waited for; 0: not at all."""
        self.seconds = seconds
        self._answered_at = 0.0
        self._is_away = False
        """It was waited for in vain: until it answers, nothing is asked twice."""

    def ask(self, request: Callable[[], T]) -> T:
        """The answer. Raises OSError: at once where it is refused, after TRIES where others are answered meanwhile, else after
        `seconds`."""
        begun, pause, tries = time.monotonic(), _FIRST_PAUSE_SECONDS, 1
        while True:
            try:
                answer = request()
            except Exception as error:
                now, failure = time.monotonic(), as_os_error(error)
                if not may_pass(error):
                    self._answered_at, self._is_away = now, False
                    raise failure from None
                if not self.seconds or self._is_away or (tries >= TRIES and self._answered_at >= begun):
                    raise failure from None
                if now - begun >= self.seconds:
                    self._is_away = True
                    said = " ".join(str(failure.strerror).split())
                    raise OSError(errno.ETIMEDOUT, f"the server has not answered for {now - begun:.0f} s: {said}") from None
                time.sleep(min(pause, begun + self.seconds - now))
                pause, tries = min(2 * pause, _LONGEST_PAUSE_SECONDS), tries + 1
            else:
                self._answered_at, self._is_away = time.monotonic(), False
                return answer
