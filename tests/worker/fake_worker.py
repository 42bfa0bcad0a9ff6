"""The real worker process, with the fake job in the place of the launcher's command."""

import sys
from pathlib import Path

from service.spec import RunSpec
from service.worker.__main__ import main


def command(spec: RunSpec, run_dir: Path, attempt: int) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("fake_job.py")), f"--run-dir={run_dir}", f"--attempt={attempt}"]


main(command=command)
