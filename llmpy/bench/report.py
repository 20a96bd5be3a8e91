"""Results for a person: a table with lines on a terminal, columns of plain text in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from llmpy.bench import machine


def show(result: dict[str, Any]) -> None:
    """Print a benchmark's result to stdout."""
    match result["benchmark"]:
        case "train":
            _train(result)
        case "matmul":
            _matmul(result)
        case "decode":
            _decode(result)
        case _:
            _attention(result)
    print(machine.summary(result["machine"]))


def _train(result: dict[str, Any]) -> None:
    model = result["model"]
    print(
        f"a training step: {model['layers']} layers, {model['heads']} heads, {model['channels']} channels,"
        f" batch {result['batch_size']}, {result['sequence_length']} tokens, recompute {result['recompute']},"
        f" {result['precision']}"
    )
    rows = [["llm.py", f"{result['ours_ms']:,.1f}", "", "", f"{result['peak_mb']:,.0f}"]]
    for peer in result["peers"]:
        if "error" in peer:
            print(f"{peer['name']} was left out: {peer['error']}", file=sys.stderr)
        else:
            times = [f"{peer['peer_ms']:,.1f}", f"{peer['ours_ms']:,.1f}", f"{peer['ratio']:.3f}"]
            rows.append([peer["name"], *times, f"{peer['peer_peak_mb']:,.0f}"])
    table(["", "ms", "llm.py beside it, ms", "ratio", "peak MB"], rows)
    if result["peer"]:
        print(f"against {result['peer']}, the peer that counts: {result['ratio']:.3f} of its time")
    print(f"{result['tokens_per_s']:,.0f} tokens/s")
    if "profile" in result:
        _profile(result["profile"])


def _profile(profile: dict[str, Any]) -> None:
    ceilings = profile["ceilings"]
    print(
        f"\nwhere a step of {profile['step_ms']:,.1f} ms goes; this machine's ceilings: products"
        f" {ceilings['gflops']:,.0f} GFLOP/s, memory {ceilings['gb_per_s']:,.1f} GB/s"
    )
    rows = []
    for one in profile["operations"]:
        row = [one["operation"], f"{one['calls']}", f"{one['ms']:,.2f}", f"{100 * one['share']:.1f}"]
        if "bound" in one:
            products = one["bound"] == "products"
            row += [f"{one['gflops']:,.0f}" if products else "", "" if products else f"{one['gb_per_s']:,.1f}"]
            row += [f"{100 * one['share_of_ceiling']:.0f}"]
        rows.append(row if "bound" in one else [*row, "", "", ""])
    table(["operation", "calls", "ms", "% of the step", "GFLOP/s", "GB/s", "% of the ceiling"], rows)


def _matmul(result: dict[str, Any]) -> None:
    names = list(result["products"][0]["gflops"])
    print(f"products of a training step, {result['precision']}, GFLOP/s; ratio: our time to that of {result['peer']};")
    print(f"share: ours of this machine's ceiling, {result['ceilings']['gflops']:,.0f} GFLOP/s")
    rows = []
    for p in result["products"]:
        speeds = [f"{speed:.0f}" for speed in p["gflops"].values()]
        rows.append([p["layer"], p["kind"], f"{p['rows']} x {p['OC']} x {p['C']}", *speeds])
        rows[-1] += [f"{p['ratio']:.3f}", f"{p['share_of_ceiling']:.2f}"]
    table(["layer", "product", "rows x OC x C", *names, "ratio", "share"], rows)
    print(f"median ratio {result['ratio']:.3f}, worst {result['worst_ratio']:.3f}")


def _attention(result: dict[str, Any]) -> None:
    print(f"causal attention of one layer, forward and backward, {result['precision']}")
    rows = []
    for one in result["lengths"]:
        peer = [f"{one['peer_ms']:.2f}", f"{one['ratio']:.3f}"] if "ratio" in one else ["", ""]
        rows.append([f"{one['B']}, {one['T']}, {one['NH']}, {one['hs']}", f"{one['ours_ms']:.2f}", *peer])
    table(["B, T, NH, hs", "llm.py, ms", f"{result['peer'] or 'peer'}, ms", "ratio"], rows)


def _decode(result: dict[str, Any]) -> None:
    read, B = result["prompt"], result["batch_size"]
    what = f"reading a prompt of {read} tokens" if read else f"generating {result['tokens']} tokens, greedily"
    texts = f", {B} texts at once" if B > 1 else ""
    precision = result["precision"] or "the engine's own precision"
    print(f"{what}{texts}: {result['source']}, {precision}")
    rows = []
    for one in [{"name": "llm.py"} | result, *result["peers"]]:
        speeds = [f"{one[name]:,.1f}" for name in ("tokens_per_s", "slowest", "fastest")]
        rows.append([one["name"], *speeds, "" if one["name"] == "llm.py" else f"{one['speedup']:.3f}"])
    table(["", "tokens/s", "slowest", "fastest", "llm.py's speed to it"], rows)
    if result["peer"]:
        print(f"{result['speedup']:.3f} times the speed of {result['peer']}")
    if memory := result["memory"]:
        print(
            f"a step reads {memory['weight_bytes'] / 1e6:,.1f} MB of weights and {memory['cache_bytes'] / 1e6:,.1f} MB"
            f" of keys and values: {memory['gb_per_s']:.1f} GB/s, {100 * memory['share']:.0f} % of the"
            f" {memory['machine_gb_per_s']:.1f} GB/s that this machine reads"
        )


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Words to the left, numbers to the right; columns in which nothing stands are left out."""
    kept = [i for i in range(len(headers)) if any(row[i] for row in rows)]
    headers, rows = [headers[i] for i in kept], [[row[i] for i in kept] for row in rows]
    numbers = [all(not row[i].strip("0123456789.,") for row in rows) for i in range(len(headers))]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        drawn = Table()
        for header, number in zip(headers, numbers, strict=True):
            drawn.add_column(header, justify="right" if number else "left")
        for row in rows:
            drawn.add_row(*row)
        Console().print(drawn)
        return
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    for row in [headers, *rows]:
        cells = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numbers, strict=True)]
        print("  ".join(cells).rstrip())
