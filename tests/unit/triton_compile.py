"""The kernels compiled for GPUs that are not here: Triton brings its compiler and NVIDIA's assembler."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trainer.classifier.triton_plan import CONFIGS
from trainer.classifier.triton_row_kernels import rows_kernel
from trainer.classifier.triton_scan_kernels import open_kernel, pair_kernel, scan_kernel, unit_kernel

TYPES = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16}
# Capability, precision of the products, padded embedding size, precision of rows and momentum.
WANTED = ((80, "fp16", 256, "fp16"), (90, "bf16", 128, "fp32"))
FP32 = "*fp32"


def compile_all() -> dict[str, dict[str, int]]:
    """Of each kernel: bytes of shared memory, and the matrix instructions in its assembly."""
    results = {}
    for capability, precision, size, stored in WANTED:
        scan, rows = CONFIGS[precision != "fp32", size > 128]
        operand, kept, wide = "*" + precision, "*" + stored, {"P": size}
        rounding = {"DTYPE": TYPES[precision], "EMULATED": False}
        products = {**rounding, "PRECISION": "ieee"}
        operands = {"x_BP": operand, "unit_CP": operand, "own_B": "*i32"}
        scan_types = {**operands, "partition_SB": FP32, "pull_SBP": FP32, "highest_SB": FP32, "maximum_GB": FP32, "scale": "fp32"}
        scan_more = {"SAMPLES": scan.samples, "CLASSES": scan.classes, "SHIFT": 15.0 if precision == "fp16" else 0.0, "MAXIMA": True}
        row_types = {"rows_CD": kept, "momentum_CD": kept, "gradient_CD": FP32, "x_BP": operand, "x32_BP": FP32, "shift_B": FP32}
        row_types |= {
            "gain_1": FP32,
            "value_T": FP32,
            "start": "i64",
            **dict.fromkeys(("apart_B", "offset_G", "class_T", "sample_T"), "*i32"),
        }
        row_types |= dict.fromkeys(("scale", "learning_rate", "momentum_factor", "weight_decay"), "fp32")
        row_more = {"CLASSES": rows.classes, "SAMPLES": rows.samples, "PAIRS": 16, **wide, **products}
        pair_types = {"rows_CD": kept, "x_BD": FP32, "class_T": "*i64", "sample_T": "*i64", "score_T": FP32}
        open_types = {**operands, "offset_G": "*i32", "sample_T": "*i32", "score_TC": FP32}
        open_more = {**wide, "SAMPLES": 32, "CLASSES": scan.classes, "PRECISION": "ieee"}
        kernels: list[tuple[str, Any, dict[str, str], dict[str, Any], int, int]] = [
            ("unit", unit_kernel, {"rows_CD": kept, "unit_CP": operand}, {**wide, **rounding, "ROWS": 16}, 4, 3),
            ("scan", scan_kernel, scan_types, {**scan_more, **wide, **products}, scan.warps, scan.stages),
            ("open", open_kernel, open_types, open_more, 4, 3),
            ("pair", pair_kernel, pair_types, {**wide, "PAIRS": 16}, 4, 3),
            ("update", rows_kernel, row_types, {**row_more, "UPDATE": True, "gradient_CD": None}, rows.warps, rows.stages),
            ("gradient", rows_kernel, row_types, {**row_more, "UPDATE": False, "momentum_CD": None}, rows.warps, rows.stages),
        ]
        for name, kernel, types, constants, warps, stages in kernels:
            compiled = _compile(kernel, types, constants, capability, warps, stages)
            assembly = compiled.asm["ptx"]
            products_count = assembly.count("wgmma.mma_async") + assembly.count("mma.sync")
            results[f"{name} {precision} {size} sm_{capability}"] = {"shared": compiled.metadata.shared, "products": products_count}
    return results


def _compile(kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int, warps: int, stages: int) -> Any:
    """As a launch would: pointers are multiples of 16; what is not named is a 32-bit number."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned: dict[Any, Any] = {(at,): [["tt.divisibility", 16]] for at, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()}, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps, "num_stages": stages})
