"""The deployment's test on a real Docker engine: `make test-compose`, or `python -m tests.compose`.

Builds the images, starts Redis, the API and four workers of two ranks each, and trains over HTTP while containers are killed, restarted
and cut off. Everything is removed at the end, also after a failure, whose logs are kept. Exit code 1 if a scenario failed.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.compose.scenarios import SCENARIOS, UNDISTURBED, Bench
from tests.compose.stack import REPOSITORY, Failed, Stack, compose_command


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compose", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="a folder of images on this machine (default: scikit-learn's digits)")
    parser.add_argument(
        "--only", action="append", metavar="WORDS", help="only scenarios with these words in their names, and what they need"
    )
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    parser.add_argument("--logs", type=Path, default=REPOSITORY / ".millionway" / "test-compose", help="where a failure's logs go")
    parser.add_argument("--no-build", action="store_true", help="take the images as they are")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: everything is removed

    begun = time.monotonic()
    results = []

    def say(text: str) -> None:
        print(f"{time.monotonic() - begun:7.1f} s  {text}", flush=True)  # noqa: T201 - for the person who waits

    try:
        stack = Stack(compose_command(), given.data)
    except Failed as error:
        say(f"FAIL  {error}")
        return 1
    try:
        stack.down()  # what a killed test left
        if not given.no_build:
            say("building the images")
            stack.compose("build", "setup", "worker", "demo-data", seconds=1800)
        if given.data:
            bench = Bench(stack, "/data", None, None)
        else:
            stack.compose("--profile", "demo", "run", "--rm", "demo-data")
            bench = Bench(stack, "/data/digits/train", "/data/digits/train", "/data/digits/test")
        say("starting Redis, the API and four workers")
        stack.up()
        for name, scenario in SCENARIOS.items():
            if given.only and name not in UNDISTURBED and not any(words in name for words in given.only):
                continue
            say(f"...   {name}")
            since = time.monotonic()
            try:
                detail, passed = scenario(bench), True
                stack.wait_for_free_workers()
            except (Failed, subprocess.SubprocessError, KeyError) as error:
                detail, passed = f"{type(error).__name__}: {error}", False
                logs = given.logs / name.replace(" ", "-").replace(",", "")
                stack.save_logs(logs)
                detail += f" (logs: {logs})"
            say(f"{'PASS' if passed else 'FAIL'}  {name}: {detail}")
            results.append({"name": name, "passed": passed, "seconds": round(time.monotonic() - since, 1), "detail": detail})
    except Failed as error:
        say(f"FAIL  {error}")
        results.append({"name": "start", "passed": False, "seconds": round(time.monotonic() - begun, 1), "detail": str(error)})
        stack.save_logs(given.logs / "start")
    except KeyboardInterrupt:
        say("interrupted: removing everything")
        return 130
    finally:
        try:
            stack.down()
        except Failed as error:
            say(f"something is left, which the next test removes: {error}")
    passed = sum(result["passed"] for result in results)
    say(f"{passed} of {len(results)} scenarios passed")
    if given.json:
        given.json.write_text(json.dumps({"seconds": round(time.monotonic() - begun, 1), "scenarios": results}, indent=1) + "\n")
    return 0 if results and passed == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
