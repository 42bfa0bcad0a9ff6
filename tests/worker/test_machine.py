"""What a machine offers: GPUs by a driver's answers, ports, addresses, and the part of an attempt that fits on it."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from service.protocol import Offer
from service.spec import parse_spec
from service.worker import machine
from service.worker.machine import describe_device, interface_of, pick_port, route_address, visible_gpus, wait_for_gpus
from service.worker.offers import environment_of, launch_of
from service.worker.settings import Settings


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvidia-smi that knows four GPUs, and whose processes are the lines of a file."""
    (tmp_path / "processes").write_text("")
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        f'#!/bin/sh\ncase "$1" in --query-gpu=name) printf "V100\\nV100\\nV100\\nV100\\n";; *) echo "$2" > {tmp_path}/asked; '
        f"cat {tmp_path}/processes;; esac\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


@pytest.mark.parametrize(("visible", "found"), [(None, [0, 1, 2, 3]), ("2,3", [2, 3]), ("", []), ("-1", []), ("3,9", [3])])
def test_gpus_are_those_that_the_process_may_use(
    driver: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, found: list[int]
) -> None:
    """Slurm gives a worker some of a node's GPUs by CUDA_VISIBLE_DEVICES."""
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpus = visible_gpus()
    assert list(gpus) == found
    assert describe_device(list(gpus.values())).startswith(f"cuda, {len(found)} x V100" if found else "cpu, ")


def test_gpus_are_free_when_the_driver_lists_no_process_that_was_not_there_before(driver: Path) -> None:
    """It may take a moment to let go; only the attempt's own GPUs are asked about."""
    listed = driver / "processes"
    listed.write_text("17\n4711\n")
    timer = threading.Timer(0.7, listed.write_text, ["17\n"])
    timer.start()
    began = time.monotonic()
    assert wait_for_gpus((2, 3), {17}) == set()
    assert 0.5 < time.monotonic() - began < 10
    timer.join()
    assert (driver / "asked").read_text().strip() == "--id=2,3"


def test_a_process_that_keeps_a_gpu_is_named_in_the_end(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait has a bound."""
    monkeypatch.setattr(machine, "GPU_SECONDS", 0.2)
    (driver / "processes").write_text("4711\n")
    assert wait_for_gpus((0,), set()) == {4711}


def test_a_port_is_free_on_all_addresses_and_not_promised_to_another_attempt() -> None:
    """Of the range, or of all."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert pick_port(range(port, port + 1), ()) is None
    assert pick_port(range(port, port + 1), ()) == port
    assert pick_port(range(port, port + 1), {port}) is None
    anywhere = pick_port(None, ())
    assert anywhere is not None
    assert anywhere > 1023


def test_the_address_is_the_one_on_the_way_to_the_api_and_has_an_interface() -> None:
    """The loopback interface leads to itself."""
    assert route_address("localhost") in ("127.0.0.1", "::1")
    assert route_address("127.0.0.1") == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None


def offer_of(num_nodes: int = 2, ranks_per_node: int = 1, device: str = "auto") -> Offer:
    document = {"data": {"path": "/data"}, "schedule": {"steps": 1}, "resources": {"device": device}}
    return Offer(
        run_id="r",
        attempt=3,
        spec=parse_spec(document),
        node_rank=0,
        num_nodes=num_nodes,
        ranks_per_node=ranks_per_node,
        slots=list(range(ranks_per_node)),
        master_address="10.0.0.7",
        master_port=None,
        pins=[],
    )


def test_cores_are_shared_out_between_the_ranks_that_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them where the attempt has the machine for itself; its slots' part where others may come."""
    monkeypatch.setattr("service.worker.offers.num_cores", lambda: 16)
    alone = Settings("w", Path("/runs"), slots=8)
    shared = Settings("w", Path("/runs"), slots=8, shared=True)
    many = Settings("w", Path("/runs"), slots=64, shared=True)
    threads = [launch_of(offer_of(ranks_per_node=4), settings, 29500, ()).num_threads for settings in (alone, shared, many)]
    assert threads == [4, 2, 1]


def test_a_job_gets_its_gpus_in_the_drivers_order_and_a_gang_its_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """And none of the worker's secrets."""
    monkeypatch.setenv("MILLIONWAY_KEY", "mw_secret")
    settings = Settings("w", Path("/runs"), slots=4)
    offer = offer_of(ranks_per_node=2)
    environment = environment_of(offer, settings, launch_of(offer, settings, 29500, (2, 3)))
    assert environment["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment["GLOO_SOCKET_IFNAME"] == "lo"
    assert "mw_secret" not in environment.values()
    single = offer_of(num_nodes=1)
    launch = launch_of(single, settings, 29500, ())
    assert launch.master_address == "127.0.0.1"
    assert "GLOO_SOCKET_IFNAME" not in environment_of(single, settings, launch)
