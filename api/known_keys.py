"""The API keys that were asked for a moment ago, so that a request needs no call of Redis for its key."""

from __future__ import annotations

import time

from service.keys import Keys
from service.runs import Key

KEPT_SECONDS = 3.0
"""How long a key is believed without asking Redis: a revoked one still works for so long."""
WRONG_KEPT_SECONDS = 1.0
MAX_KEPT = 10_000


class KnownKeys:
    """The keys that were asked for a moment ago. Wrong ones are remembered apart, so that guesses push out no right one."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._right: dict[str, tuple[float, Key]] = {}
        self._wrong: dict[str, float] = {}

    def is_new(self, digest: str) -> bool:
        """Whether no request came with this key so far, or it was wrong."""
        return digest not in self._right

    async def find(self, digest: str) -> Key | None:
        """The key, unless it is unknown or revoked. Raises StoreUnavailable."""
        now = time.monotonic()
        if (right := self._right.get(digest)) and now < right[0]:
            return right[1]
        if now < self._wrong.get(digest, now):
            return None
        key = await self._keys.find(digest)
        self._right.pop(digest, None)
        if key is None or key.revoked_at is not None:
            self._wrong[digest] = now + WRONG_KEPT_SECONDS
            key = None
        else:
            self._right[digest] = (now + KEPT_SECONDS, key)
        for kept in (self._right, self._wrong):
            if len(kept) > MAX_KEPT:
                del kept[next(iter(kept))]
        return key
