"""The corpus that is always there: the chapters of the Python manual that `help()` shows, from `pydoc_data.topics`.

It is plain text made by Sphinx: wrapped at 70 columns, headings underlined, `*emphasis*`, grammar, tables. Here it
becomes English: paragraphs on one line each, code as it is, the rest of the markup gone.
"""

import re
from itertools import pairwise

from llmpy.errors import UserError

WIDTH = 70  # Sphinx wraps its text output here
_ASCII = str.maketrans(
    {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x2013: "-", 0x2014: "--", 0x2026: "...", 0xA0: " "}
)
_NO_ENGLISH = re.compile(r"::=|^ *[+|][-=| ]|^ *-\[|^ *[-=*~^+]{4,}$", re.MULTILINE)  # grammar, tables, rules
_UNDERLINE = re.compile(r"\n[*=\-~^\"]{3,}$", re.MULTILINE)
_EMPHASIS = re.compile(r"(?<![\w*\"'])(\*\*?)(\w[^*\"]*?)\1(?![\w*])")
_SHORTEST = 200  # characters; what is shorter after cleaning is no chapter


def documents() -> list[str]:
    """The chapters, cleaned, in the order of their names; what stands in several is kept once.

    (`specialnames` holds `customization` whole, and so on: such text in both splits would make validation a lie.)
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise UserError("this Python comes without its manual (pydoc_data.topics): give a text of your own") from error
    seen: set[str] = set()
    chapters = []
    for _, source in sorted(topics.items()):
        paragraphs = []
        for paragraph in clean(source):
            if paragraph not in seen:
                paragraphs.append(paragraph)
                seen.add(paragraph)
        text = "\n\n".join(paragraphs) + "\n"
        if len(text) >= _SHORTEST:
            chapters.append(text)
    return chapters


def clean(source: str) -> list[str]:
    """Sphinx's text -> paragraphs: prose on one line, code with its line breaks and indentation."""
    source = _UNDERLINE.sub("\n", source.translate(_ASCII))
    paragraphs = []
    for block in re.split(r"\n(?:[ \t]*\n)+", source.strip("\n")):
        if _NO_ENGLISH.search(block):
            continue
        lines = block.rstrip().split("\n")
        if _is_wrapped(lines):
            paragraphs.append(_EMPHASIS.sub(r"\2", _join(lines)))
        else:
            paragraphs.append("\n".join(line.rstrip() for line in lines))
    return [paragraph for paragraph in paragraphs if paragraph.strip()]


def _is_wrapped(lines: list[str]) -> bool:
    """Whether a filling of lines to WIDTH has made these: no line had room for the first word of the next.

    A block of one line is taken for prose if it reads like a sentence.
    """
    if len(lines) == 1:
        return bool(re.fullmatch(r" *(\* |\[\d+\] )?[A-Z\"(].*[a-z\")][.:]", lines[0]))
    return all(
        len(line) + 1 + len(_first_word(following)) > WIDTH or line.endswith("-") for line, following in pairwise(lines)
    )


def _first_word(line: str) -> str:
    return re.findall(r"[^\s-]*-?", line.lstrip())[0]


def _join(lines: list[str]) -> str:
    text = lines[0].strip()
    for line in lines[1:]:
        # Sphinx breaks at hyphens too: "built-" and "in" are one word.
        text += ("" if re.search(r"\w-$", text) else " ") + line.strip()
    return re.sub(r" {2,}", " ", text)
