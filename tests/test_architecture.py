"""ARCHITECTURE.md names every file of the package, and functions that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
TREE = TEXT.split("```")[1]


def listed() -> set[str]:
    """Returns the paths of all files in the tree; a line may name several files of its folder."""
    folders: list[str] = []
    found = set()
    for line in TREE.splitlines():
        if not line.strip():
            continue
        depth = (len(line) - len(line.lstrip())) // 2
        if match := re.match(r" *([\w.]+/)", line):
            folders = [*folders[:depth], match[1]]
            depth += 1
        elif depth > len(folders):  # the second line of a phrase
            depth = len(folders)
        names = re.findall(r"[\w]+\.py", line)
        found |= {"".join(folders[:depth]) + name for name in names}
    return found


def test_the_tree_names_every_file():
    files = {
        str(path.relative_to(ROOT))
        for folder in ("llmpy", "simple")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert sorted(files - listed()) == [], "not in the tree of ARCHITECTURE.md"
    assert sorted(listed() - files) == [], "in the tree of ARCHITECTURE.md, but not there"


def test_the_functions_of_the_paths_exist():
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "llmpy").rglob("*.py"))
    tables = TEXT.split("## The path of a training step")[1].split("## The matmul of the CPU")[0]
    names = [
        name
        for row in tables.splitlines()
        if row.startswith("|")
        for name in re.findall(r"`([A-Za-z_.0-9]+)`", row.split("|")[2])
        if "/" not in name and not name.endswith(".py")
    ]
    assert len(names) > 15
    for name in names:
        assert re.search(rf"\b(def|class) {name.split('.')[-1]}\b", source), f"{name} is not defined in llmpy/"
