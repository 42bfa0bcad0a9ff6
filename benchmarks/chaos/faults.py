"""What can go wrong. Each fault acts on the stack and undoes itself; it returns False where there was nothing to hit."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.chaos.proxy import HTTP_FAULTS
from benchmarks.chaos.stack import LEASE_SECONDS, Stack

Fault = Callable[[Stack, random.Random], bool]


def kill_api(stack: Stack, rng: random.Random) -> bool:
    return _kill(stack, "api")


def kill_redis(stack: Stack, rng: random.Random) -> bool:
    return _kill(stack, "redis")


def kill_worker(stack: Stack, rng: random.Random) -> bool:
    return _kill(stack, _some_worker(stack, rng))


def terminate_worker(stack: Stack, rng: random.Random) -> bool:
    """As a service manager stops one: its runs are to checkpoint and queue again."""
    stack.children[_some_worker(stack, rng)].send_signal(signal.SIGTERM)
    return True


def kill_rank(stack: Stack, rng: random.Random) -> bool:
    ranks = sorted(stack.ranks())
    if not ranks:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(rng.choice(ranks), signal.SIGKILL)
    return True


def stop_rank(stack: Stack, rng: random.Random) -> bool:
    """It stands still for a while: its peers wait for it, and nothing is wrong yet."""
    ranks = sorted(stack.ranks())
    if not ranks:
        return False
    pid = rng.choice(ranks)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(rng.uniform(1, 4))
        os.kill(pid, signal.SIGCONT)
    return True


def stop_api(stack: Stack, rng: random.Random) -> bool:
    return _pause(stack, "api", rng.uniform(0.5, 1.5 * LEASE_SECONDS))


def stop_redis(stack: Stack, rng: random.Random) -> bool:
    return _pause(stack, "redis", rng.uniform(0.5, 1.5 * LEASE_SECONDS))


def stop_worker(stack: Stack, rng: random.Random) -> bool:
    """Often beyond its lease: its runs go elsewhere, and it comes back as a zombie."""
    return _pause(stack, _some_worker(stack, rng), rng.uniform(0.5, 2.5 * LEASE_SECONDS))


def http(stack: Stack, rng: random.Random) -> bool:
    stack.proxy.pending += [rng.choice(HTTP_FAULTS) for _ in range(rng.randint(1, 4))]
    return True


def cut_network(stack: Stack, rng: random.Random) -> bool:
    """All workers, for longer than the lease or shorter."""
    stack.proxy.closed = True
    stack.proxy.cut()
    time.sleep(rng.uniform(0.2, 1.5 * LEASE_SECONDS))
    stack.proxy.closed = False
    return True


def cut_redis(stack: Stack, rng: random.Random) -> bool:
    """Connections end in the middle of calls: writes were done, and their answers are lost."""
    for _ in range(rng.randint(1, 5)):
        stack.redis_proxy.cut()
        time.sleep(rng.uniform(0.0, 0.3))
    return True


def fill_runs_disk(stack: Stack, rng: random.Random) -> bool:
    return stack.runs in stack.mounted and _fill(stack.runs, rng.uniform(1, 5))


def fill_logs_disk(stack: Stack, rng: random.Random) -> bool:
    return stack.state in stack.mounted and _fill(stack.state, rng.uniform(1, 5))


def step_clock(stack: Stack, rng: random.Random) -> bool:
    """Redis's clock, which is that of the leases, jumps, and jumps back."""
    if stack.clock is None:
        return False
    clock = stack.directory / "clock"
    clock.write_text(str(rng.choice([-3600, -30, -5, 5, 30, 3600])))
    time.sleep(rng.uniform(0.5, 3))
    clock.write_text("0")
    return True


FAULTS: dict[Fault, int] = {
    http: 6,
    kill_rank: 3,
    kill_worker: 3,
    kill_api: 2,
    kill_redis: 2,
    terminate_worker: 1,
    stop_rank: 2,
    stop_worker: 2,
    stop_api: 2,
    stop_redis: 1,
    cut_network: 2,
    cut_redis: 2,
    fill_runs_disk: 1,
    fill_logs_disk: 1,
    step_clock: 1,
}
"""With how often each is drawn."""


def _some_worker(stack: Stack, rng: random.Random) -> str:
    return rng.choice(sorted(name for name in stack.children if name.startswith("worker")))


def _kill(stack: Stack, name: str) -> bool:
    stack.children[name].kill()
    stack.children[name].wait()
    return True


def _pause(stack: Stack, name: str, seconds: float) -> bool:
    child = stack.children[name]
    child.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    child.send_signal(signal.SIGCONT)
    return True


def _fill(folder: Path, seconds: float) -> bool:
    filler = folder / ".filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(1 << 20))
            file.flush()
    time.sleep(seconds)
    filler.unlink(missing_ok=True)
    return True
