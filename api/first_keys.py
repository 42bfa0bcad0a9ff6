"""The first keys, made once Redis answers."""

from __future__ import annotations

import asyncio

import structlog

from service.errors import MillionwayError, StoreUnavailable
from service.keys import Keys, make_first_keys
from service.settings import Settings

log = structlog.get_logger()

RETRY_SECONDS = 1.0


async def first_keys(keys: Keys, settings: Settings) -> None:
    """Returns when there is nothing more to do."""
    if settings.keys_dir is None:
        return
    while True:
        try:
            known = await make_first_keys(keys, settings.keys_dir)
            log.info("first_keys" if known else "first_keys_not_needed", keys_dir=str(settings.keys_dir))
            return
        except StoreUnavailable:
            await asyncio.sleep(RETRY_SECONDS)
        except (OSError, MillionwayError) as error:
            log.error("first_keys_failed", keys_dir=str(settings.keys_dir), why=str(error))
            return
