"""What an offer means on this machine: the launcher's arguments and environment, and what data the run may read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from service.admission import is_url
from service.launch import Launch, job_environment
from service.layout import RunDir
from service.protocol import Offer
from service.spec import RunSpec
from service.worker.machine import interface_of, num_cores
from service.worker.settings import Settings


def launch_of(offer: Offer, settings: Settings, master_port: int | None, gpus: tuple[int, ...]) -> Launch:
    """`master_port`: None where the lead found no free one."""
    parent = offer.parent
    return Launch(
        run_dir=settings.runs_dir / offer.run_id,
        attempt=offer.attempt,
        num_nodes=offer.num_nodes,
        node_rank=offer.node_rank,
        ranks_per_node=offer.ranks_per_node,
        master_address=offer.master_address if offer.num_nodes > 1 else "127.0.0.1",
        master_port=master_port or 0,
        start_from=RunDir(settings.runs_dir / parent.run_id).checkpoint(parent.step) if parent else None,
        num_threads=max(1, num_cores() // (settings.slots if settings.shared else offer.ranks_per_node)),
        gpus=gpus,
    )


def environment_of(offer: Offer, settings: Settings, launch: Launch) -> dict[str, str]:
    environment = job_environment(offer.spec, launch)
    if launch.gpus:
        environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as nvidia-smi counts them
    if launch.num_nodes > 1 and (interface := interface_of(settings.address)):
        # gloo would take the address of the host's name, which many systems resolve to the loopback interface
        environment.setdefault("GLOO_SOCKET_IFNAME", interface)
    return environment


def outside_roots(spec: RunSpec, roots: Sequence[Path]) -> str | None:
    """In words, which of the run's folders lies in none of `roots`, links and `..` resolved. None where all do, or no root is set."""
    folders = {
        "data.path": spec.data.path,
        "data.index": spec.data.index,
        "evaluation.labelled": spec.evaluation.labelled,
        "evaluation.queries": spec.evaluation.queries,
    }
    resolved = [Path(os.path.realpath(root)) for root in roots]
    for field, folder in folders.items():
        if folder is None or not roots:
            continue
        if is_url(folder):
            real, allowed = Path(folder), [root for root in roots if ".." not in Path(folder).parts]  # both have one slash for two
        else:
            real = Path(os.path.realpath(folder))
            allowed = resolved
        if not any(real.is_relative_to(root) for root in allowed):
            names = ", ".join(map(str, roots))
            leads = f", which leads to {str(real)!r}" if str(real) != folder and not is_url(folder) else ""
            return f"{field} is {folder!r}{leads}, outside of what this worker may read: name a folder in {names} (--data-root)"
    return None
