"""Whether the API answers while training loads every core: latency of GET /runs/RUN, idle and during a run.

    python benchmarks/api_under_load.py [--seconds 20] [--json FILE]

Starts the embedded stack in a temporary directory, submits the demo's specification and polls at 20 requests a second. The
peer is a bare FastAPI route (one dictionary, no Redis) in a process of its own, polled in the same way at the same time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from deploy.demo_data import demo_spec, inspect, write_digits
from deploy.state import StateDir
from service.client import ApiClient
from service.launch import free_port
from service.layout import write_whole
from service.lifecycle import Status
from service.worker.machine import default_slots

PEER = "import fastapi; app = fastapi.FastAPI(); app.get('/run')(lambda: {'status': 'running'})"
RATE = 20


def wait_until(condition: Any, what: str, seconds: float = 90.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.2)
    sys.exit(f"{what}: not within {seconds:g} s")


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.HTTPError:
        return False


def poll(urls: dict[str, str], seconds: float) -> dict[str, dict[str, float]]:
    """Milliseconds by URL: median, 99th percentile, maximum."""
    times: dict[str, list[float]] = {name: [] for name in urls}
    with httpx.Client(timeout=10) as client:
        for _ in range(round(seconds * RATE)):
            begun = time.monotonic()
            for name, url in urls.items():
                sent = time.monotonic()
                client.get(url).raise_for_status()
                times[name].append(1000 * (time.monotonic() - sent))
            time.sleep(max(0.0, begun + 1 / RATE - time.monotonic()))
    return {name: {"p50": statistics.median(t), "p99": statistics.quantiles(t, n=100)[98], "max": max(t)} for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    state = StateDir(Path(tempfile.mkdtemp(prefix="millionway-")))
    port = free_port()
    peer = subprocess.Popen([sys.executable, "-c", f"{PEER}; import uvicorn; uvicorn.run(app, port={port}, log_level='error')"])
    stack = subprocess.Popen([sys.executable, "-m", "deploy.cli", "up", "--state-dir", str(state.path)], stdout=subprocess.DEVNULL)
    try:
        url = wait_until(state.running_url, "the stack")
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/run"), "the peer")
        results: dict[str, Any] = {}
        with ApiClient(url) as client:
            spec = demo_spec(inspect(write_digits(state.path / "demo-data")), default_slots())
            run = client.submit(spec)
            urls = {"GET /runs/RUN": f"{url}/runs/{run.id}", "bare FastAPI route": f"http://127.0.0.1:{port}/run"}
            wait_until(lambda: client.run(run.id).phase == "training", "the training")
            results["training on every core"] = poll(urls, arguments.seconds)
            assert client.run(run.id).status == Status.RUNNING, "the run ended before the measurement did: fewer --seconds"
            client.cancel(run.id)
            wait_until(lambda: client.run(run.id).status == Status.CANCELLED, "the cancelled run's end")
            results["idle"] = poll(urls, arguments.seconds)
    finally:
        for process in (stack, peer):
            process.terminate()
            process.wait(timeout=60)
    print(f"{'milliseconds':26}{'route':22}{'p50':>8}{'p99':>8}{'max':>8}")
    for situation, by_name in results.items():
        for name, t in by_name.items():
            print(f"{situation:26}{name:22}{t['p50']:8.1f}{t['p99']:8.1f}{t['max']:8.1f}")
    if arguments.json:
        write_whole(arguments.json, json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
