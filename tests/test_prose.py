"""Docstrings and comments are plain English in the field's words: no riddles, one term for one thing."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path for folder in ("llmpy", "benchmarks", "examples", "simple") for path in (ROOT / folder).rglob("*.py")
)

# A docstring begins with a verb in the third person or a noun phrase, never with a word that points elsewhere.
FIRST_WORDS = {
    *("all", "any", "as", "beside", "but", "by", "for", "from", "he", "here", "how", "if", "in", "into", "it", "its"),
    *("nothing", "of", "on", "others", "over", "that", "these", "they", "this", "those", "to", "under", "until"),
    *("what", "whatever", "when", "where", "which", "who", "whoever", "whose", "with", "without"),
}

# The pattern, and the field's word for it.
BANNED = {
    r"\b(made|makes?|making) again\b": "recompute",
    r"\bturn(s|ed|ing)? back\b": "rotate by a negative angle",
    r"\b(is|are|was|were|be|been) turned\b": "rotated (RoPE) or transposed",
    r"\bon (its|their) way\b": "pending, in flight",
    r"\blots\b": "batches, the prefetch queue",
    r"\bwidened\b": "dequantized, converted to float32",
    r"\bbeginnings\b": "prefixes",
    r"\bproducts? of few rows\b": "GEMV, few-row matmul",
    r"\bgo(es)? on\b": "continue, resume",
    r"\bwent on\b": "continued",
    r"\badded to and\b": "accumulated (+=)",
    r"\bof (any )?numbers\b": "dtype, elements",
    r"\binner width\b": "intermediate size",
    r"\bby the (caller's )?leave\b": "with the permission",
    r"\bfew rows\b": "a small batch, GEMV",
}


def docstrings(path: Path) -> list[tuple[int, str]]:
    """(line, text) of every docstring of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds) and node.body]
    return [
        (node.body[0].lineno, text) for node in nodes if (text := ast.get_docstring(node)) and text.strip()
    ]  # fmt: skip


def comments(path: Path) -> list[tuple[int, str]]:
    """(line, text) of every comment of a file."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    return [(token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_a_verb_or_a_noun_phrase(path):
    riddles = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for line, text in docstrings(path)
        if re.split(r"\W", text.lstrip(), maxsplit=1)[0].lower() in FIRST_WORDS
    ]
    assert not riddles, "begin with a verb (Writes ..., Returns ...) or a noun phrase:\n" + "\n".join(riddles)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_uses_the_terms_of_the_field(path):
    found = [
        f"{path.relative_to(ROOT)}:{line}: {match[0]!r}: write {term}"
        for line, text in (*docstrings(path), *comments(path))
        for pattern, term in BANNED.items()
        if (match := re.search(pattern, text, re.IGNORECASE))
    ]
    assert not found, "\n".join(found)
