"""The registry of families, and that no code outside a family's file asks for the class of a config."""

import ast
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

import llmpy
from llmpy.models.registry import FAMILIES, config_from_dict, family_of

PACKAGE = Path(llmpy.__file__).parent
FAMILY_FILES = {PACKAGE / "models" / f"{name}.py" for name in FAMILIES}


def asks_for_a_family(tree: ast.AST) -> bool:
    """True where a call isinstance(..., SomeConfig) names the config class of a family."""
    classes = {f"{family.classes}Config" for family in FAMILIES.values()}
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance")
    return any(name.id in classes for call in calls for name in ast.walk(call) if isinstance(name, ast.Name))


def test_no_file_but_a_familys_own_asks_for_the_class_of_a_config():
    assert asks_for_a_family(ast.parse("isinstance(config, (GPT2Config, LlamaConfig))"))
    found = [p for p in PACKAGE.rglob("*.py") if p not in FAMILY_FILES and asks_for_a_family(ast.parse(p.read_text()))]
    assert not found


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_one_file(name):
    family = FAMILIES[name]
    config = family.config()
    assert family_of(config) is family
    assert config_from_dict(asdict(config)) == config
    assert {each.__module__ for each in (family.config, family.model, family.decoder)} == {f"llmpy.models.{name}"}


def test_the_registry_imports_nothing_heavy():
    code = "import sys, llmpy.models.presets; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
