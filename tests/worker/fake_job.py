"""A job for the worker's tests: a launcher with ranks that write a spool, beats and logs as the trainer does, and starts in no time.

The ranks meet at the master's port, over all nodes; who loses a peer fails, as with gloo. What they do is the run's name:
    steady    one event, one beat and one log line every 20 ms, `schedule.steps` of them; at the stop file or SIGTERM it writes a
              checkpoint, which the next attempt starts from, and ends with 75
    deaf      as steady, but sees no stop file
    stubborn  as steady, but neither sees a stop file nor ends at SIGTERM
    stuck     as steady, and stands still after 120 steps, deaf to lost peers, as in a kernel of NCCL
    wedged    as stuck, but a rank that loses its peer fails, as in gloo
    shot      as steady, and SIGKILL ends the last rank after 25 steps
    parent    leaves a process behind in a session of its own, writes its id to the log, and ends well
    faulty    reports bad_data and exits with 1
    broken    prints a traceback and exits with 1
"""

import argparse
import contextlib
import ctypes
import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--run-dir", type=Path)
for number in ("attempt", "num-nodes", "node-rank", "ranks-per-node", "master-port"):
    parser.add_argument(f"--{number}", type=int)
parser.add_argument("--master-address")
given = parser.parse_args()
attempt_dir = given.run_dir / "attempts" / f"{given.attempt:04d}"
spec = json.loads((given.run_dir / "spec.json").read_text())
name, num_steps = spec["name"], spec["schedule"]["steps"]
world_size = given.num_nodes * given.ranks_per_node


def launch() -> int:
    """Start the ranks; say which failed first and end the others, as PyTorch's launcher does."""
    first = given.node_rank * given.ranks_per_node
    ranks = {
        rank: subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, "RANK": str(first + rank)}, start_new_session=True)
        for rank in range(given.ranks_per_node)
    }

    def pass_on(*_: object) -> None:
        for process in ranks.values():
            process.terminate()

    signal.signal(signal.SIGTERM, pass_on)
    while True:
        failed = {rank: process for rank, process in ranks.items() if process.poll()}
        for rank, process in failed.items():
            if rank == min(failed):
                why = f"failed (exitcode: {process.returncode}) local_rank: {rank} (pid: {process.pid}) of binary: python"
                sys.stdout.write(f"E1124 api.py:991] {why}\n")
            listed = f"  rank      : {first + rank} (local_rank: {rank})\n  exitcode  : {process.returncode} (pid: {process.pid})\n"
            sys.stdout.write(listed)
        if failed:
            pass_on()
            for other in ranks.values():
                other.wait()
            return 1
        if all(process.poll() == 0 for process in ranks.values()):
            return 0
        time.sleep(0.02)


class Rank:
    def __init__(self, rank: int) -> None:
        self.rank, self.seq, self.is_leaving, self.stop_requested = rank, 0, False, False
        self.log = (attempt_dir / f"rank-{rank}.log").open("a", buffering=1)
        faulthandler.register(signal.SIGUSR1, self.log)
        (attempt_dir / "beats").mkdir(exist_ok=True)
        self.beats = os.open(attempt_dir / "beats" / f"rank-{rank}", os.O_WRONLY | os.O_CREAT)
        signal.signal(signal.SIGTERM, self.on_sigterm)

    def on_sigterm(self, *_: object) -> None:
        print("got SIGTERM", file=self.log)
        self.stop_requested = True

    def append(self, kind: str, **fields: object) -> None:
        self.seq += 1
        with (attempt_dir / "events.jsonl").open("a") as spool:
            spool.write(json.dumps({"seq": self.seq, "time": time.time(), "kind": kind, **fields}) + "\n")

    def fail(self, code: str, message: str) -> None:
        if self.rank == 0:
            self.append("failed", code=code, message=message)
        print(f"Traceback (most recent call last):\nRuntimeError: {message}", file=self.log)
        os._exit(1)

    def meet(self) -> None:
        """Every rank is connected with rank 0."""
        self.peers = []
        if self.rank == 0:
            with socket.create_server(("0.0.0.0", given.master_port)) as server:
                for _ in range(world_size - 1):
                    self.peers.append(server.accept()[0])
        else:
            deadline = time.monotonic() + 20
            while not self.peers:
                with contextlib.suppress(ConnectionRefusedError):
                    self.peers.append(socket.create_connection((given.master_address, given.master_port)))
                if time.monotonic() > deadline:
                    self.fail("internal", "Timed out waiting for rank 0")
                time.sleep(0.02)
        for peer in self.peers:
            threading.Thread(target=self.listen, args=(peer,), daemon=True).start()

    def listen(self, peer: socket.socket) -> None:
        said = b""
        with contextlib.suppress(ConnectionResetError):
            said = peer.recv(3)
        if not said and not self.is_leaving:
            self.fail("internal", "Connection closed by peer")

    def bye(self) -> None:
        self.is_leaving = True
        for peer in self.peers:
            with contextlib.suppress(OSError):
                peer.sendall(b"bye")

    def beat(self, step: int) -> None:
        line = json.dumps({"step": step, "phase": "training", "count": step, "time": time.time()}).ljust(127) + "\n"
        os.pwrite(self.beats, line.encode(), 0)

    def work(self) -> int:
        self.meet()
        saved = given.run_dir / "step"
        start = int(saved.read_text()) if saved.exists() else 0
        if self.rank == 0:
            self.append("started", num_images=100, num_steps=num_steps, start_step=start, world_size=world_size, device="none")
        if name == "parent":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
            print(child.pid, file=self.log)
            return 0
        if name == "faulty":
            self.fail("bad_data", "data.path holds no images: name a folder of images")
        if name == "broken":
            print("Traceback (most recent call last):\nKeyError: 'stem'", file=self.log)
            return 1
        numbers = {"loss": 1.0, "learning_rate": 0.1, "images_per_second": 10.0, "data_wait": 0.0, "eta_seconds": 1.0}
        for step in range(start + 1, num_steps + 1):
            if self.rank == 0:
                self.append("progress", step=step, num_steps=num_steps, epoch=step / num_steps, num_epochs=1.0, **numbers)
            self.beat(step)
            print(f"step {step} " + "x" * 200, file=self.log)
            time.sleep(0.02)
            if name in ("stuck", "wedged") and step == 120:
                self.is_leaving = name == "stuck"
                self.hang()
            if name == "shot" and step == 25 and self.rank == world_size - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            asked = (name != "deaf" and (attempt_dir / "stop").exists()) or self.stop_requested
            if asked and name != "stubborn":
                print(f"checkpoint at {step}", file=self.log)
                if self.rank == 0:
                    saved.write_text(str(step))
                    self.append("checkpointed", step=step, epoch=step / num_steps, path=str(saved), num_bytes=1)
                return 75
        time.sleep(0.5 if self.rank == 0 and world_size > 1 else 0.0)  # the export, while the other nodes' ranks are done
        return 0

    def hang(self) -> None:
        time.sleep(600)


if "RANK" in os.environ:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: it ends with the launcher, as the trainer's ranks do
    rank = Rank(int(os.environ["RANK"]))
    code = rank.work()
    rank.bye()
    sys.exit(code)
sys.exit(launch())
