"""The task that takes runs back from workers that fell silent."""

from __future__ import annotations

import asyncio
import time

import structlog

from service.errors import StoreUnavailable
from service.store import Store

log = structlog.get_logger()


async def watch_leases(store: Store) -> None:
    """Every second, until cancelled.

    Workers can renew only through this process. So when it was away, whether not started, halted or without its Redis,
    every lease first gets a full period.
    """
    pause_seconds, away_seconds = min(1.0, store.lease_seconds / 6), store.lease_seconds / 2
    last_watch, failing = float("-inf"), False
    while True:
        try:
            if time.monotonic() - last_watch > away_seconds:
                await store.extend_leases()
            else:
                for run_id in await store.expire_leases():
                    log.warning("lease_expired", run_id=run_id)
            last_watch, failing = time.monotonic(), False
        except StoreUnavailable as error:
            if not failing:
                log.warning("leases_unwatched", why=str(error))
            failing = True
        except Exception:
            log.exception("leases_unwatched")  # a fault of ours must not end the watch
        await asyncio.sleep(pause_seconds)
