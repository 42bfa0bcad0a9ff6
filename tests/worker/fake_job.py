"""A job for the worker's tests: writes a spool and a log as the trainer does, imports nothing of ours, and starts in no time.

What it does is the run's name:
    steady    one event and one log line every 20 ms, `schedule.steps` of them; on SIGTERM it says so and exits with 75
    stubborn  as steady, deaf to SIGTERM
    parent    leaves a process behind in a session of its own, writes its id to the log, and ends well
    faulty    reports bad_data and exits with 1, as PyTorch's launcher does
    broken    prints a traceback and exits with 1
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--run-dir", type=Path)
parser.add_argument("--attempt", type=int)
arguments = parser.parse_args()
spec = json.loads((arguments.run_dir / "spec.json").read_text())
attempt_dir = arguments.run_dir / "attempts" / f"{arguments.attempt:04d}"
log = (attempt_dir / "rank-0.log").open("a", buffering=1)
num_steps = spec["schedule"]["steps"]


def append(seq: int, kind: str, **fields: object) -> None:
    with (attempt_dir / "events.jsonl").open("a") as spool:
        spool.write(json.dumps({"seq": seq, "time": time.time(), "kind": kind, **fields}) + "\n")


def progress(step: int) -> dict[str, object]:
    numbers = {"loss": 1.0, "learning_rate": 0.1, "images_per_second": 10.0, "data_wait": 0.0, "eta_seconds": 1.0}
    return {"step": step, "num_steps": num_steps, "epoch": step / num_steps, "num_epochs": 1.0, **numbers}


def on_sigterm(*_: object) -> None:
    print("got SIGTERM", file=log)
    if spec["name"] != "stubborn":
        sys.exit(75)


signal.signal(signal.SIGTERM, on_sigterm)
append(1, "started", num_images=100, num_steps=num_steps, start_step=0, world_size=1, device="none")
if spec["name"] == "parent":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print(child.pid, file=log)
elif spec["name"] == "faulty":
    append(2, "failed", code="bad_data", message="data.path holds no images: name a folder of images")
    sys.exit(1)
elif spec["name"] == "broken":
    print("Traceback (most recent call last):\nKeyError: 'stem'", file=log)
    sys.stdout.write("E1124 api.py:991] failed (exitcode: 1) local_rank: 0 (pid: 7) of binary: python\n")  # as PyTorch's launcher
    sys.exit(1)
else:
    for step in range(1, num_steps + 1):
        append(1 + step, "progress", **progress(step))
        print(f"step {step} " + "x" * 200, file=log)
        time.sleep(0.02)
