"""How much one client may ask for, counted in this process: requests per second, and requests under way at once."""

from __future__ import annotations

import ipaddress
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import RateLimited
from service.runs import Key, Role

BURST_SECONDS = 5.0
"""A client that was quiet may ask at once for what it could have asked for in this time."""
STRANGERS_SHARE = 0.1
"""What one address may ask for without a valid key, of what a key may: enough for health checks, too little to guess with."""
UNDER_WAY_OF_KEY = 500
"""Event streams, followed logs, long polls and downloads last; all other requests pass in milliseconds."""
UNDER_WAY = 2000
MAX_NAMES = 10_000


class Limits:
    """Workers' keys are not counted: a fleet's reports come when they come."""

    def __init__(self, requests_per_second: float) -> None:
        self._of_keys, self._of_strangers = Buckets(requests_per_second), Buckets(requests_per_second * STRANGERS_SHARE)
        self._under_way: Counter[str] = Counter()

    @contextmanager
    def known(self, key: Key) -> Iterator[None]:
        """While a request with this key is answered. Raises RateLimited."""
        if key.role == Role.WORKER:
            yield
            return
        if wait := self._of_keys.take(key.id):
            rate = self._of_keys.per_second
            raise RateLimited(
                f"the key {key.name!r} asks more than {rate:g} times per second (MILLIONWAY_RATE_LIMIT): ask less often", wait
            )
        if self._under_way[key.id] >= UNDER_WAY_OF_KEY:
            message = f"{UNDER_WAY_OF_KEY} requests of the key {key.name!r} are under way, which is the limit: end some that wait or stream"
            raise RateLimited(message, 1.0)
        if self._under_way.total() >= UNDER_WAY:
            raise RateLimited(
                f"{UNDER_WAY} requests are under way, which is the limit of one API process: try again, or start another", 1.0
            )
        self._under_way[key.id] += 1
        try:
            yield
        finally:
            self._under_way[key.id] -= 1
            if not self._under_way[key.id]:
                del self._under_way[key.id]

    def stranger(self, host: str) -> None:
        """A request that carries no key that is known so far. Raises RateLimited."""
        if wait := self._of_strangers.take(_network(host)):
            rate = self._of_strangers.per_second
            message = f"{host} asks more than {rate:g} times per second without a valid key: ask less often, or with a key"
            raise RateLimited(message, wait)


class Buckets:
    """Token buckets, each refilled at `per_second` up to BURST_SECONDS' worth. The one used least recently is forgotten."""

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self._size = max(1.0, per_second * BURST_SECONDS)
        self._levels: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> float:
        """0 where there was a token; else the seconds until there is one."""
        now = time.monotonic()
        level, since = self._levels.pop(name, (self._size, now))
        level = min(self._size, level + (now - since) * self.per_second)
        taken = level >= 1.0
        self._levels[name] = (level - taken, now)
        if len(self._levels) > MAX_NAMES:
            del self._levels[next(iter(self._levels))]
        return 0.0 if taken else (1.0 - level) / self.per_second


def _network(host: str) -> str:
    """The address; of IPv6 the /64 that one subscriber has."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a Unix socket has none
        return host
    return host if address.version == 4 else str(ipaddress.ip_network((int(address), 64), strict=False))
