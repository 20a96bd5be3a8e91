"""Draws the pictures of ARCHITECTURE.md as SVG files: `python docs/drawings.py` writes them to docs/images."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

IMAGES = Path(__file__).resolve().parent / "images"
INK, PALE = "#24292f", "#f6f8fa"
SAVED, SCRATCH, WEIGHT, GRADIENT, COMPUTE = "#cfe8cf", "#eeeeee", "#d6e4f5", "#f9d9c8", "#ffffff"


class Drawing:
    """An SVG picture of `width` x `height` pixels, drawn with boxes, lines and text."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height = width, height
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
            ' font-family="DejaVu Sans, Verdana, sans-serif" font-size="12">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
            f'<path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="white"/>',
        ]

    def text(self, x: float, y: float, text: str, anchor: str = "start", size: int = 12, bold: bool = False) -> None:
        """Writes `text` with its baseline at (x, y)."""
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}"{weight} fill="{INK}">'
            f"{escape(text)}</text>"
        )

    def box(self, x: float, y: float, w: float, h: float, label: str = "", fill: str = COMPUTE, size: int = 12) -> None:
        """Draws a box with a label in its middle; lines of the label are separated by a line feed."""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="3" fill="{fill}" stroke="{INK}"/>'
        )
        lines = label.split("\n")
        for number, line in enumerate(lines):
            middle = y + h / 2 + size * 0.36 + (number - (len(lines) - 1) / 2) * size * 1.25
            self.text(x + w / 2, middle, line, "middle", size)

    def line(self, *points: tuple[float, float], head: bool = True, dashed: bool = False) -> None:
        """Draws a line through the points, with an arrow head at its end."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        style = (' marker-end="url(#head)"' if head else "") + (' stroke-dasharray="4 3"' if dashed else "")
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{INK}"{style}/>')

    def legend(self, x: float, y: float, *entries: tuple[str, str]) -> None:
        """Draws a row of coloured squares, each with its meaning."""
        for fill, meaning in entries:
            self.box(x, y, 14, 14, fill=fill)
            self.text(x + 20, y + 12, meaning)
            x += 44 + 7 * len(meaning)

    def svg(self) -> str:
        """Returns the picture as the text of an SVG file."""
        return "\n".join([*self.parts, "</svg>", ""])


def block() -> Drawing:
    """Draws one GPT-2 block: its operations, the activations it saves, and what each gradient overwrites."""
    d = Drawing(980, 850, "A GPT-2 block: forward, saved activations, backward")
    d.text(150, 28, "forward, top to bottom", "middle", 14, bold=True)
    d.text(480, 28, "arrays", "middle", 14, bold=True)
    d.text(800, 28, "backward, bottom to top", "middle", 14, bold=True)
    rows = [
        ("residual[l]  [N, C]", SAVED, None, "dresidual [N, C]: one for all layers,\naccumulated (+=) by both norms"),
        ("ln  [N, C]", SCRATCH, "layernorm_forward", "recomputed, then overwritten by its gradient"),
        ("qkv  [B, T, 3, NH, hs]", SAVED, "linear_forward  (qkvw, qkvb)", "dq, dk, dv overwrite q, k, v"),
        ("att [N, C]  and  lse [B, NH, T]", SAVED, "attention_forward", "datt [N, C]: an array of its own"),
        ("residual_mid  [N, C]", SAVED, "linear_forward (attprojw) + residual", "dresidual: an addition passes it on"),
        ("ln  [N, C]", SCRATCH, "layernorm_forward", "recomputed, then overwritten by its gradient"),
        ("fch  [N, 4C], before GELU", SAVED, "linear_forward  (fcw, fcb)", "fch becomes GELU(fch), for dfcprojw"),
        ("fch_gelu  [N, 4C]", SCRATCH, "GELU, in the epilogue of the same matmul", "dfch overwrites fch_gelu"),
        ("residual[l + 1]  [N, C]", SAVED, "linear_forward (fcprojw) + residual", "dresidual arrives here"),
    ]  # fmt: skip
    step, top = 82, 50
    for number, (name, fill, operation, gradient) in enumerate(rows):
        y = top + number * step
        d.box(370, y, 220, 38, name, fill)
        d.box(640, y, 320, 38, gradient, GRADIENT, 11)
        d.line((640, y + 19), (592, y + 19), dashed=True)
        if operation:
            d.box(20, y - 22, 270, 34, operation, COMPUTE, 11)
            d.line((290, y - 5), (330, y - 5), (330, y + 19), (368, y + 19))
            d.line((390, y - 44), (390, y - 5), (292, y - 5), head=False)
    for first, last in ((0, 4), (4, 8)):
        y0, y1 = top + first * step + 19, top + last * step + 19
        x = 610
        d.line((590, y0), (x, y0), (x, y1), (592, y1))
        d.text(x + 6, (y0 + y1) / 2, "+", size=16, bold=True)
    d.legend(
        20, 815, (SAVED, "saved for backward (--recompute 0)"), (SCRATCH, "scratch, shared by all layers"),
        (GRADIENT, "where the gradient lies"),
    )  # fmt: skip
    return d


def flat_buffer() -> Drawing:
    """Draws the four flat buffers and the views that the table of parameters cuts out of them."""
    d = Drawing(980, 330, "Flat buffers and their views")
    names = [("wte", 200), ("wpe", 70), ("ln1w", 26), ("ln1b", 26), ("qkvw [L, 3C, C]", 150), ("qkvb", 30)]
    names += [("attprojw", 70), ("...", 40), ("fcw [L, 4C, C]", 140), ("fcb", 30), ("fcprojw", 110), ("lnf", 30)]
    rows = (
        ("parameters", WEIGHT), ("gradients", GRADIENT), ("m  (AdamW)", SAVED), ("v  (AdamW)", SAVED),
    )  # fmt: skip
    d.text(20, 26, "One table of parameters cuts every buffer in the same way", size=14, bold=True)
    for row, (title, fill) in enumerate(rows):
        x, y = 110.0, 46 + row * 44
        d.text(20, y + 20, title)
        for name, width in names:
            d.box(x, y, width * 0.92, 30, name if row == 0 and width > 60 else "", fill, 11)
            x += width * 0.92
    d.line((110, 232), (110 + 848, 232))
    d.text(534, 226, "addresses: one allocation, taken before the first step", "middle", 11)
    d.box(330, 262, 270, 34, "gradients.layers[3].qkvw  [3C, C]", GRADIENT, 11)
    x = 110 + (200 + 70 + 26 + 26) * 0.92 + 150 * 0.92 * 3 / 12
    d.line((x, 120), (x, 248), (400, 248), (400, 260), dashed=True)
    d.text(620, 283, "a view of one layer: no copy; AdamW and the norm", size=11)
    d.text(620, 298, "run over the flat buffer and see no tensors at all", size=11)
    return d


def gemm() -> Drawing:
    """Draws the blocked matmul of the CPU: cache blocks, panels, and the tile in registers."""
    d = Drawing(980, 470, "The blocked matmul of the CPU")
    d.text(20, 26, "C [M, N] (+)= A [M, K] @ B [K, N]", size=14, bold=True)
    d.box(40, 70, 220, 200, fill=PALE)
    d.text(150, 62, "A", "middle", bold=True)
    d.box(40, 130, 90, 70, "block\nMC x KC", WEIGHT, 11)
    for row in range(4):
        d.line((40, 130 + row * 17.5), (130, 130 + row * 17.5), head=False)
    d.box(330, 70, 200, 200, fill=PALE)
    d.text(430, 62, "B", "middle", bold=True)
    d.box(330, 70, 200, 84, "KC rows of B: read once, shared\nby all threads", SAVED, 11)
    d.box(600, 70, 200, 200, fill=PALE)
    d.text(700, 62, "C", "middle", bold=True)
    d.box(600, 130, 200, 70, "", GRADIENT)
    d.box(660, 147.5, 42, 17.5, "", COMPUTE)
    d.line((681, 165), (681, 300))
    d.text(820, 150, "a task: one block of", size=11)
    d.text(820, 165, "the private operand by", size=11)
    d.text(820, 180, "all of the shared one", size=11)
    d.box(560, 302, 250, 110, "", COMPUTE)
    d.text(685, 322, "tile of C: MR x NR, in registers", "middle", 11, bold=True)
    d.text(685, 344, "AVX-512: 8 x 48 float32", "middle", 11)
    d.text(685, 362, "AVX2: 4 x 24,  AMX: 32 x 32", "middle", 11)
    d.text(685, 384, "epilogue before it is stored:", "middle", 11)
    d.text(685, 400, "bias, GELU, residual, dtype", "middle", 11)
    d.line((85, 200), (85, 300))
    d.box(40, 302, 180, 26, "panel of A: [KC, MR]", WEIGHT, 11)
    d.line((430, 154), (430, 300))
    d.box(300, 302, 200, 26, "panel of B: [KC, NR]", SAVED, 11)
    d.line((220, 315), (270, 315), (270, 372), (558, 372))
    d.line((400, 328), (400, 352), (558, 352))
    d.text(40, 350, "packed: the micro-kernel reads", size=11)
    d.text(40, 365, "a panel from front to back", size=11)
    d.text(
        20, 445, "The sum over K runs in one order for any number of threads, so results repeat bit for bit.", size=12
    )
    return d


def kv_cache() -> Drawing:
    """Draws the KV cache: slots, a shared prefix, and what happens when a slot is full."""
    d = Drawing(980, 380, "The KV cache")
    d.text(20, 26, "keys and values [L, slots, T, NKV, hs]: a text in each slot", size=14, bold=True)
    cell = 24
    slots = [
        ("slot 0", 12, 12, "prompt prefilled"),
        ("slot 1", 12, 18, "prefix of 16 n tokens copied from slot 0, the rest prefilled"),
        ("slot 2", 0, 0, "free"),
    ]
    for row, (title, shared, held, note) in enumerate(slots):
        y = 50 + row * 50
        d.text(20, y + 17, title)
        for t in range(26):
            fill = SAVED if t < shared else WEIGHT if t < held else COMPUTE
            d.box(80 + t * cell, y, cell, 26, fill=fill)
        d.text(80 + 26 * cell + 14, y + 17, note.split(", ")[0], size=11)
        if ", " in note:
            d.text(80 + 26 * cell + 14, y + 32, note.split(", ")[1], size=11)
    d.line((80 + 6 * cell, 76), (80 + 6 * cell, 98))
    d.text(
        20,
        225,
        "A full slot, --overflow roll (Llama): the first tokens stay, half of the others is dropped,",
        bold=True,
    )
    d.text(20, 243, "and the keys behind the gap are rotated back by the number of dropped positions", bold=True)
    for t in range(26):
        fill = SAVED if t < 4 else SCRATCH if t < 15 else WEIGHT
        d.box(80 + t * cell, 262, cell, 26, fill=fill)
        fill = SAVED if t < 4 else WEIGHT if t < 15 else COMPUTE
        d.box(80 + t * cell, 324, cell, 26, fill=fill)
    d.text(20, 279, "before")
    d.text(20, 341, "after")
    d.line((80 + 20 * cell, 288), (80 + 9 * cell, 322))
    d.text(80 + 26 * cell + 14, 279, "grey: dropped", size=11)
    d.text(80 + 26 * cell + 14, 341, "room for new tokens", size=11)
    return d


DRAWINGS = {"block": block, "flat_buffer": flat_buffer, "gemm": gemm, "kv_cache": kv_cache}


def main() -> None:
    """Writes all pictures."""
    IMAGES.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (IMAGES / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
