"""The measurements for a person: tables, and at the end one that says which targets are met."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from benchmarks.gpu.targets import share_of_copy
from llmpy.bench.report import table


def card(result: dict[str, Any]) -> None:
    card, ceilings = result["card"], result.get("ceilings", {})
    told = [f"{card[name]}" for name in ("power_limit", "clock") if name in card]
    driver = f"driver {card['driver']}, " if "driver" in card else ""
    print(", ".join([card["name"], f"{card['memory_gb']} GB", f"{driver}CUDA {card['cuda']}", *told]))
    print(", ".join(f"{name} {version}" for name, version in card["versions"].items()))
    print("time, in seconds: " + ", ".join(f"{name} {seconds}" for name, seconds in result["time"].items()))
    if "copy_gb_per_s" in ceilings:
        of = f" of {card['peak_gb_per_s']:,}" if card["peak_gb_per_s"] else ""
        print(f"ceilings: a copy moves {ceilings['copy_gb_per_s']:,.0f}{of} GB/s", end="")
        if "gemm_tflops" in ceilings:
            of = f" of {card['peak_tflops']:,}" if card["peak_tflops"] else ""
            print(f", a large product in bfloat16 makes {ceilings['gemm_tflops']:,.0f}{of} TFLOP/s", end="")
        print()


def checks(result: dict[str, Any]) -> None:
    """The worst of each operation in each precision; and every case that failed."""
    print("\nagainst the reference in float64: |difference| / |reference|")
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in result["checks"]:
        groups.setdefault((row["operation"], row["precision"], row["limit"]), []).append(row)
    rows = []
    for (operation, precision, limit), of in sorted(groups.items()):
        worst = max((_error(row) for row in of), default=0.0)
        passed = all(row["passed"] for row in of)
        rows.append([operation, precision, f"{len(of)}", f"{worst:.1e}", f"{limit:.0e}", "pass" if passed else "FAIL"])
    table(["operation", "precision", "cases", "worst error", "limit", ""], rows)
    for row in result["checks"]:
        if not row["passed"]:
            where = f"{row['operation']} {row['precision']}, {row['size']} {row['label']}"
            print(f"FAIL {where}: {_error(row):.1e}, {row['of']}")


def _error(row: dict[str, Any]) -> float:
    return math.inf if row["error"] is None else row["error"]


def kernels(result: dict[str, Any]) -> None:
    """Ours beside their ceilings, unless PyTorch's are yet to come."""
    if "peers" not in result["time"]:
        peers(result)


def peers(result: dict[str, Any]) -> None:
    """Ours beside their ceilings and PyTorch's."""
    print("\nkernels in bfloat16: milliseconds; % of what a copy's bandwidth, or a large product's speed, allows")
    theirs: dict[str, list[dict[str, Any]]] = {}
    for row in result.get("peers", []):
        theirs.setdefault(row["key"], []).append(row)
    rows = []
    for row in result.get("kernels", []):
        name = f"{row['operation']} {row['label']}"
        if "missing" in row:
            rows.append([row["size"], name, row["way"], row["missing"][:40], "", "", ""])
            continue
        share = ceiling_share(row, result.get("ceilings", {}))
        timed = [peer for peer in theirs.get(row["key"], []) if "seconds" in peer]
        beside = ", ".join(f"{peer['name']} {peer['seconds'] * 1e3:.3f}" for peer in timed)
        best = min((peer["seconds"] for peer in timed), default=None)
        ratio = f"{row['seconds'] / best:.2f}" if best else ""
        percent = "" if share is None else f"{100 * share:.0f}"
        rows.append([row["size"], name, row["way"], f"{row['seconds'] * 1e3:.3f}", percent, beside, ratio])
    table(["model", "operation", "by", "ms", "%", "others, ms", "ratio"], rows)


def ceiling_share(row: dict[str, Any], ceilings: dict[str, float]) -> float | None:
    """The least time that the ceilings allow, as a part of the time it took."""
    if not row["flops"]:
        return share_of_copy(row, ceilings)
    if "gemm_tflops" not in ceilings:
        return None
    least = max(row["flops"] / ceilings["gemm_tflops"] / 1e12, row["bytes"] / ceilings["copy_gb_per_s"] / 1e9)
    return least / row["seconds"]


def steps(result: dict[str, Any]) -> None:
    print("\ntraining steps in bfloat16, with clipping and AdamW")
    rows = []
    for step in result["steps"]:
        name = "llm.py" if step["ours"] else "PyTorch, compiled"
        how = (
            f"recompute {step['recompute']}, {step['gemm']}"
            if step["ours"]
            else f"{step['attention']}, {step['compiled']}"
        )
        head = [name, step["model"], f"{step['batch_size']}", how]
        if "missing" in step:
            rows.append([*head, step["missing"][:60], "", "", ""])
            continue
        mfu = f"{100 * step['mfu']:.1f}" if step.get("mfu") else ""
        rows.append(
            [*head, f"{step['tokens_per_s']:,.0f}", f"{step['seconds'] * 1e3:,.1f}", mfu, f"{step['memory_gb']:.1f}"]
        )
    table(["", "model", "B", "how", "tokens/s", "ms", "MFU %", "GB"], rows)


def losses(result: dict[str, Any]) -> None:
    print("\nlosses of AdamW steps on the same batch, from the same weights")
    names = list(result["losses"])
    most = max((len(of) for of in result["losses"].values()), default=0)
    rows = [
        [f"{step}", *(f"{of[step]:.6f}" if step < len(of) else "" for of in result["losses"].values())]
        for step in range(most)
    ]
    table(["step", *names], rows)


def generation(result: dict[str, Any]) -> None:
    print("\ngenerating one text")
    rows = [
        [row["model"], row["precision"], row["what"], f"{row['tokens']}", f"{row['tokens_per_s']:,.1f}"]
        for row in result["generation"]
    ]
    table(["model", "precision", "", "tokens", "tokens/s"], rows)


def targets(rows: Iterable[dict[str, str]], stopped: Iterable[str]) -> None:
    print()
    for line in stopped:
        print(f"not measured to the end: {line}")
    table(["target", "wanted", "measured", ""], [list(row.values()) for row in rows])
