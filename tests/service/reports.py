"""What a test lets a worker do: report events, or fall silent."""

from __future__ import annotations

from service.event_effects import read_event
from service.store import Store


async def end_leases(store: Store) -> None:
    """As if every worker had been silent for too long while the control plane watched.

    With periods of less than nothing a look at the leases always renews them, to a moment that is past.
    """
    lease, store.lease_seconds = store.lease_seconds, -1
    await store.expire_leases()
    store.lease_seconds = lease


async def silence(store: Store) -> None:
    """Let every lease end now, and its run be taken back."""
    await end_leases(store)
    await store.expire_leases()


async def send(store: Store, run_id: str, attempt: int, *events: dict[str, object]) -> None:
    await store.apply_events(run_id, attempt, [read_event(event) for event in events])
