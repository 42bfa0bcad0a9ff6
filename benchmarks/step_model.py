"""From what one rank was measured to do, the step of 64 ranks: arithmetic on stated assumptions, and its tables."""

from __future__ import annotations

from typing import Any

from benchmarks.sole_rank import BUSY, Case

LINK = 100e9 / 8
"""Bytes per second of the network: of a rank (one device to a node), or shared by the 8 ranks of a node."""
RANKS_PER_NODE = 8
LATENCY = 10e-6
"""Assumption: of one message between two ranks, from call to arrival."""
ENCODER_FLOP = 3 * 2 * 4.1e9
"""Of one image of 224 pixels: 4.1e9 multiply-adds of a ResNet-50's forward pass, two flop each, and twice as much backward."""

ASSUMED = {
    "V100, fp16, eager": {"classifier": 11e12, "encoder": 1000 * ENCODER_FLOP},
    "H100, bf16, fused": {"classifier": 300e12, "encoder": 2500 * ENCODER_FLOP},
}
"""Flop per second, assumed and not measured. V100: of each score 1,024 flop at 60 TFLOP/s and about 60 bytes of traffic at 0.8 TB/s, for
scores pass through memory between its kernels. H100: a third of the peak. Encoders: 1,000 and 2,500 images per second."""

PARAMETERS = 25.6e6
"""Of a ResNet-50."""

HEADER = (
    "\nMeasured on this device                                                             "
    "| network at 100 Gb/s (arithmetic)   | classifier,\n"
    "    classes   K products     scan  forward   update     step  busy extra MB GFLOP/s "
    "| MB sent  by 8 ranks  alone  latency | of the step"
)


def of_encoder(seconds: float, images: int, device: str) -> str:
    rate = ENCODER_FLOP / seconds
    return (
        f"{device}: ResNet-50 forward and backward, 224 px: {seconds:.4g} s an image in batches of {images}, measured; "
        f"{rate / 1e9:,.0f} GFLOP/s at {ENCODER_FLOP / 1e9:.1f} GFLOP an image"
    )


def latency(ranks: int, hardest_k: int) -> float:
    """Seconds: rings pass P - 1 messages one after the other, an all-reduce twice as many; nothing is taken to overlap."""
    gathers, exchanges = 2 + bool(hardest_k), 1 + bool(hardest_k)
    return LATENCY * (ranks - 1) * (gathers + exchanges + 2)


def of_step(row: dict[str, Any], encoder_seconds: float, case: Case) -> dict[str, float]:
    """What a step of all ranks takes, the network's part not overlapped with anything."""
    images = case.batch // case.ranks
    wait = latency(case.ranks, case.hardest_k)
    on_node, alone = (row["bytes_counted"] / (LINK / share) + wait for share in (RANKS_PER_NODE, 1))
    encoder = encoder_seconds * images
    return {
        "network_seconds_8_ranks_per_node": on_node,
        "network_seconds_1_rank_per_node": alone,
        "latency_seconds": wait,
        "encoder_seconds": encoder,
        "classifier_share": (row["seconds"] + on_node) / (row["seconds"] + on_node + encoder),
    }


def line(row: dict[str, Any]) -> str:
    wait = row["latency_seconds"]
    by_8, alone = ((row[f"network_seconds_{place}_per_node"] - wait) * 1e3 for place in ("8_ranks", "1_rank"))
    parts = " ".join(f"{row[f'{part}seconds']:8.3f}" for part in ("scan_", "forward_", "update_", ""))
    return (
        f"{row['classes']:11,} {row['hardest_k']:3} {row['products']:>8} {parts} {row['busy']:5.0%} {row['extra_bytes'] / 1e6:8.1f} "
        f"{row['flop_per_second'] / 1e9:7.0f} | {row['bytes_counted'] / 1e6:7.2f} {by_8:7.2f} ms {alone:5.2f} ms {wait * 1e3:4.1f} ms | "
        f"{row['classifier_share']:10.1%}"
    )


def estimates(results: list[dict[str, Any]], batch: int) -> list[dict[str, Any]]:
    """Rows `estimate`: flop over an assumed rate. Nothing measured but the bytes' count."""
    rows = []
    for device, rate in ASSUMED.items():
        for row in results:
            if row["products"] != results[0]["products"]:
                continue
            classifier, encoder = row["flop"] / rate["classifier"], ENCODER_FLOP * batch / 64 / rate["encoder"]
            network = row["network_seconds_8_ranks_per_node"]
            step = classifier + network + encoder
            rows.append(
                {
                    "name": "estimate",
                    "device": device,
                    "classes": row["classes"],
                    "hardest_k": row["hardest_k"],
                    "classifier_seconds": classifier,
                    "network_seconds": network,
                    "encoder_seconds": encoder,
                    "classifier_share": (classifier + network) / step,
                    "samples_per_second_and_rank": batch / 64 / step,
                }
            )
    return rows


def notes(results: list[dict[str, Any]], batch: int) -> str:
    gradients = 2 * 63 / 64 * 4 * PARAMETERS
    lines = [
        "",
        "scan: of the shard's rows; forward: scan, targets and merging; update: second pass and SGD; seconds. Extra: beyond rows and",
        "momentum. GFLOP/s: four products, 8 B n D flop, over the step. Classifier: (its step + its network by 8 ranks + latency) over",
        f"that and the encoder, a ResNet-50 with {batch // 64} images a rank, measured above on the same device.",
        "Network: bytes counted, over 100 Gb/s that 8 ranks of a node share (as if all of them left the node) or that a rank has alone.",
        f"Latency: ASSUMED {LATENCY * 1e6:.0f} us a message, rings of 64, nothing overlapped. Not in it: the encoder's gradients,",
        f"data-parallel {gradients / 1e6:.0f} MB a rank, {gradients / LINK * RANKS_PER_NODE * 1e3:.0f} ms by 8 ranks (arithmetic).",
        f"busy: this process had so much of the CPUs' time; under {BUSY:.0%} other programs were in the way: run the row again.",
        "",
        "ESTIMATES for devices that were not here: flop over an ASSUMED rate; not measured",
        f"{'':20} {'classes':>11} {'K':>3} {'classifier':>11} {'network':>9} {'encoder':>9} {'share':>7} {'samples/s/rank':>15}",
    ]
    for row in estimates(results, batch):
        lines.append(
            f"{row['device']:20} {row['classes']:11,} {row['hardest_k']:3} {row['classifier_seconds'] * 1e3:8.1f} ms "
            f"{row['network_seconds'] * 1e3:6.1f} ms {row['encoder_seconds'] * 1e3:6.1f} ms {row['classifier_share']:7.1%} "
            f"{row['samples_per_second_and_rank']:15.0f}"
        )
    for device, rate in ASSUMED.items():
        lines.append(f"  assumed for {device}: classifier {rate['classifier'] / 1e12:.0f}, encoder {rate['encoder'] / 1e12:.0f} TFLOP/s")
    lines += [
        "",
        "PartialFC, published (8 x V100, 1.4 M identities, whole training step): 1672 samples/s data-parallel, 3043 model-parallel, 4738",
        "with a tenth of the classes sampled: 209, 380 and 592 a rank; 32252, 11178 and 6056 MB a rank. Its head runs at about 4 % of the",
        "tensor cores' peak, 5 TFLOP/s. Its encoder, D and batch are others: the two are not the same experiment.",
    ]
    return "\n".join(lines)
