"""The real worker process, with the fake job in the place of the launcher's command."""

import sys
from pathlib import Path

from service.launch import Launch
from service.worker.__main__ import main


def command(launch: Launch) -> list[str]:
    names = ("run_dir", "attempt", "num_nodes", "node_rank", "ranks_per_node", "master_address", "master_port")
    return [
        sys.executable,
        str(Path(__file__).with_name("fake_job.py")),
        *(f"--{name.replace('_', '-')}={getattr(launch, name)}" for name in names),
    ]


main(command=command)
