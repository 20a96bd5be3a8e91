"""Targets of the measurements, and whether each is reached."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

COPY_SHARE = 0.85
CUDNN_SHARE = 0.9
LOSSES = {"float32": 1e-4, "bfloat16": 0.02}
SPEEDS = {"d12": (520_000, 1.10), "d48": (51_000, 1.05)}  # tokens/s on an H200, and of torch.compile's on any card
MOST_GB = {"d48": 50.0}  # without recomputation
CONTEST = ("GPU", "CPU", "PyTorch")


def verdicts(result: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each target: what was wanted, what was measured, and `pass`, `miss` or `not measured`."""
    rows = [_checks(result.get("checks", []), result.get("cases", 0))]
    rows += [_losses(result.get("losses", {}), precision, limit) for precision, limit in LOSSES.items()]
    for model, (speed, ratio) in SPEEDS.items():
        rows += _steps(result.get("steps", []), model, speed, ratio)
    rows += [_attention(result, head_size) for head_size in (64, 128)]
    return [*rows, _memory_bound(result), _constant(result.get("steps", []))]


def _row(target: str, wanted: str, measured: str | None, passed: bool) -> dict[str, str]:
    verdict = "not measured" if measured is None else "pass" if passed else "miss"
    return {"target": target, "wanted": wanted, "measured": measured or "", "verdict": verdict}


def _checks(checks: list[dict[str, Any]], cases: int) -> dict[str, str]:
    passed = sum(check["passed"] for check in checks)
    told = f"{passed} of {cases} cases" if checks else None
    return _row("kernels against float64", "float32 1e-5, bf16 1e-2", told, passed == cases)


def _losses(losses: dict[str, list[float]], precision: str, limit: float) -> dict[str, str]:
    """The largest distance of the GPU's losses from the CPU's and PyTorch's."""
    gpu, *others = (losses.get(f"{name} {precision}", []) for name in CONTEST)
    apart = [abs(a - b) for other in others for a, b in zip(gpu, other, strict=False)]
    whole = bool(gpu) and any(len(other) == len(gpu) for other in others)
    told = f"{max(apart):.1e}" if whole and apart else None
    return _row(f"ten AdamW steps, {precision}", f"within {limit:g}", told, whole and max(apart) <= limit)


def fastest(steps: Iterable[dict[str, Any]], model: str, ours: bool) -> dict[str, Any] | None:
    found = [step for step in steps if step["model"] == model and step["ours"] == ours and "tokens_per_s" in step]
    return max(found, key=lambda step: step["tokens_per_s"], default=None)


def _steps(steps: list[dict[str, Any]], model: str, speed: float, ratio: float) -> list[dict[str, str]]:
    us, them = fastest(steps, model, True), fastest(steps, model, False)
    ours = us["tokens_per_s"] if us else 0.0
    beside = ours / them["tokens_per_s"] if us and them else None
    name = {"d12": "GPT-2 124M", "d48": "GPT-2 1558M"}[model]
    told = f"{ours:,.0f} (B {us['batch_size']}, recompute {us['recompute']})" if us else None
    rows = [_row(f"{name}, T 1024, bf16, tokens/s", f"{speed:,} on an H200", told, ours >= speed)]
    told = f"{beside:.3f}" if beside else None
    rows.append(_row(f"{name}, beside torch.compile", f"{ratio:.2f}", told, bool(beside) and beside >= ratio))
    if model in MOST_GB:
        used = [s["memory_gb"] for s in steps if s["model"] == model and s.get("recompute") == 0 and "memory_gb" in s]
        most, told = MOST_GB[model], f"{used[0]:.1f} GB" if used else None
        rows.append(_row(f"{name}, memory, recompute 0", f"{most:.0f} GB", told, bool(used) and used[0] <= most))
    return rows


def _attention(result: dict[str, Any], head_size: int) -> dict[str, str]:
    """The least, over the shapes of this head size, of cuDNN's time forward and backward to ours."""
    ours = {row["key"]: row["seconds"] for row in result.get("kernels", []) if "seconds" in row}
    theirs = {
        row["key"]: row["seconds"] for row in result.get("peers", []) if row["name"] == "cuDNN" and "seconds" in row
    }
    ratios = []
    for key in ours:
        back = key.replace("attention_forward", "attention_backward")
        fits = key != back and key.endswith(f"x {head_size}")
        if fits and all(one in times for one in (key, back) for times in (ours, theirs)):
            ratios.append((theirs[key] + theirs[back]) / (ours[key] + ours[back]))
    told = f"{min(ratios):.3f}" if ratios else None
    target = f"attention, head {head_size}, forward + backward, of cuDNN's speed"
    return _row(target, f"{CUDNN_SHARE}", told, bool(ratios) and min(ratios) >= CUDNN_SHARE)


def share_of_copy(row: dict[str, Any], ceilings: dict[str, float]) -> float | None:
    """The share of the copy bandwidth that a kernel reaches; None if unknown, or if matmuls bound the kernel."""
    if "copy_gb_per_s" not in ceilings or "seconds" not in row or row["flops"]:
        return None
    return row["bytes"] / row["seconds"] / 1e9 / ceilings["copy_gb_per_s"]


def _memory_bound(result: dict[str, Any]) -> dict[str, str]:
    """The worst of those that a training step calls."""
    rows = [row for row in result.get("kernels", []) if row["size"] != "generation"]
    shares = [(share, row) for row in rows if (share := share_of_copy(row, result.get("ceilings", {}))) is not None]
    share, row = min(shares, key=lambda pair: pair[0], default=(0.0, {}))
    below = sum(each < COPY_SHARE for each, _ in shares)
    told = f"{share:.2f}, {row['key']}; {below} of {len(shares)} below" if shares else None
    return _row("memory-bound kernels, of the copy's bandwidth", f"{COPY_SHARE}", told, share >= COPY_SHARE)


def _constant(steps: list[dict[str, Any]]) -> dict[str, str]:
    kept = [step["constant"] for step in steps if "constant" in step]
    told = f"in {sum(kept)} of {len(kept)} runs" if kept else None
    return _row("memory after step 0", "constant", told, all(kept))
