"""Imports run one way, from the command line down to the kernels, and nothing heavy is loaded before it is used."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the bottom up. A module imports from its own package and the packages before it, never from those after it.
ORDER = (
    "llmpy.errors",
    "llmpy.utils",
    "llmpy.quant",
    "llmpy.kernels",
    "llmpy.models",
    "llmpy.tokenization",
    "llmpy.formats",
    "llmpy.data",
    "llmpy.inference",
    "llmpy.training",
    "llmpy.tools",
    "llmpy.bench",
    "llmpy.cli",
    "llmpy.__main__",
    "llmpy",
)
HEAVY = (
    *("numba", "llvmlite", "torch", "transformers", "tokenizers", "tiktoken", "sentencepiece", "huggingface_hub"),
    *("jinja2", "matplotlib"),
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / "llmpy").rglob("*.py"))}


def place(module: str) -> int:
    """The position in ORDER of the package that holds a module."""
    package = ".".join(module.split(".")[:2])
    assert package in ORDER, f"{package} has no place in ORDER: give it one"
    return ORDER.index(package)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported(tree: ast.AST) -> set[str]:
    """Every module that the tree imports, inside functions too, but for what only the type checker reads."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write the full name"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in MODULES else node.module)
        found |= imported(node)
    return found


IMPORTS = {module: imported(ast.parse(path.read_text(encoding="utf-8"))) for module, path in MODULES.items()}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_nothing_from_a_later_package(module):
    # `from llmpy import __version__` asks the package for its name, not for its contents
    ours = {name for name in IMPORTS[module] if name.startswith("llmpy.")}
    later = sorted(name for name in ours if place(name) > place(module))
    assert not later, f"{module} imports {', '.join(later)} from a later package"


def test_no_modules_import_each_other_in_a_circle():
    ours = {
        module: {name for name in names if name in MODULES} - {"llmpy", module} for module, names in IMPORTS.items()
    }
    try:
        TopologicalSorter(ours).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("llmpy.kernels.cuda")])
def test_triton_is_imported_only_under_the_cuda_kernels(module):
    assert not {name for name in IMPORTS[module] if name.split(".")[0] == "triton"}


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("llmpy.bench")])
def test_pytorch_is_imported_only_as_the_peer_of_a_benchmark(module):
    assert not {name for name in IMPORTS[module] if name.split(".")[0] in ("torch", "transformers")}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("llmpy.kernels.")])
def test_backends_know_nothing_of_each_other(module):
    backend = module.split(".")[2]
    if backend == "backend":  # loads them by name
        return
    others = {name for name in IMPORTS[module] if name.startswith("llmpy.kernels.") and name.split(".")[2] != backend}
    assert not {name for name in others if name.split(".")[2] in ("reference", "cpu", "cuda")}


@pytest.mark.parametrize("call", ["pass", "llmpy.UserError", "main(['--help'])", "main(['train', '--help'])"])
def test_starting_loads_nothing_heavy_and_compiles_nothing(call, tmp_path):
    script = f"""
import sys, contextlib, llmpy
from llmpy.cli import main
with contextlib.suppress(SystemExit):
    {call}
print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)
"""
    environment = {"PYTHONPATH": str(ROOT), "LLMPY_CACHE_DIR": str(tmp_path), "PATH": ""}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stderr == "[]\n"
    assert not list(tmp_path.iterdir()), "something was compiled or cached"
