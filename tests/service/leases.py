"""Leases that end when a test says so."""

from __future__ import annotations

from service.store import Store


async def end_leases(store: Store) -> None:
    """As if every worker had been silent for too long while the control plane watched.

    With periods of less than nothing a look at the leases always renews them, to a moment that is past.
    """
    lease, store.lease_seconds = store.lease_seconds, -1
    await store.expire_leases()
    store.lease_seconds = lease
