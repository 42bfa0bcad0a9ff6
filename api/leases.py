"""The task that takes runs back from workers that fell silent."""

from __future__ import annotations

import asyncio

import structlog

from service.errors import StoreUnavailable
from service.store import Store

log = structlog.get_logger()


async def watch_leases(store: Store) -> None:
    """Every second, until cancelled."""
    pause_seconds, failing = min(1.0, store.lease_seconds / 6), False
    while True:
        try:
            for run_id in await store.expire_leases():
                log.warning("lease_expired", run_id=run_id)
            failing = False
        except StoreUnavailable as error:
            if not failing:
                log.warning("leases_unwatched", why=str(error))
            failing = True
        except Exception:
            log.exception("leases_unwatched")  # a fault of ours must not end the watch
        await asyncio.sleep(pause_seconds)
