"""What the repository promises about itself: documents name commands and files that exist, versions agree."""

import contextlib
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

import llmpy
from llmpy import cli

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
FENCE = re.compile(r"^```(?:bash|console|sh|shell)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def tracked_files() -> list[str]:
    git = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if git.returncode:
        pytest.skip("not a git checkout")
    return git.stdout.splitlines()


def llmpy_commands(text: str) -> list[str]:
    """Every `llmpy ...` of shell lines, without the path before it, and the pipe, comment or help text after it."""
    text = text.replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        for part in re.split(r"&&|\||;", line):
            match = re.match(r"\s*(?:\$ )?(?:\S*/)?(?:python -m )?(llmpy(?: [^ ].*)?)$", part.rstrip())
            if match and "COMMAND" not in part:
                found.append(re.split(r"\s{2,}|\s#|\s[<>]", match[1])[0])
    return found


def assert_parses(command: str) -> None:
    words = shlex.split(command)[1:]
    name = next((word for word in words if word in cli.COMMANDS), None)
    with contextlib.suppress(SystemExit) if "--help" in words else contextlib.nullcontext():
        cli.build_command_parser(name).parse_intermixed_args(words[1:])


def test_the_changelog_speaks_of_this_version():
    assert re.search(rf"^## {re.escape(llmpy.__version__)}\b", read("CHANGELOG.md"), re.MULTILINE)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_shows_examples_that_it_accepts(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    assert stopped.value.code == 0
    examples = [command for command in llmpy_commands(capsys.readouterr().out) if command.startswith(f"llmpy {name}")]
    assert examples, f"llmpy {name} --help shows no example"
    for command in examples:
        assert_parses(command)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_show_only_commands_that_exist(document):
    for block in FENCE.findall(document.read_text(encoding="utf-8")):
        for command in llmpy_commands(block):
            assert_parses(command)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_link_only_to_files_that_exist(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_have_no_figure_left_to_fill_in(document):
    lines = document.read_text(encoding="utf-8").splitlines()
    assert not [number for number, line in enumerate(lines, 1) if "@@" + "FILL" in line], "line numbers"


def test_the_readme_installs_extras_that_exist():
    extras = set(PYPROJECT["project"]["optional-dependencies"])
    for document in DOCUMENTS:
        for names in re.findall(r"\.\[([\w,]+)\]", document.read_text(encoding="utf-8")):
            assert set(names.split(",")) <= extras, f"{document.name} installs .[{names}]"


def test_the_readme_and_ci_run_the_tests_in_the_same_way():
    assert 'pip install -e ".[test]" &&' in read("README.md")
    assert re.search(r"&& \S*pytest$", read("README.md"), re.MULTILINE)
    assert read(".ci/run").rstrip().endswith("\npytest")


def test_nothing_pins_the_place_that_packages_come_from():
    for name in tracked_files():
        assert not re.search(r"(\.lock|-lock\.json|requirements.*\.txt)$", name), f"{name}: a lock file names hosts"
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", ".ci/run", ".github/workflows/ci.yml"):
        assert not re.search(r"index-url|find-links", read(name)), f"{name} names a package index"


def test_nothing_large_and_no_leftovers_are_tracked():
    for name in tracked_files():
        path = ROOT / name
        assert not path.exists() or path.stat().st_size < 2**20, f"{name} is larger than 1 MB"
        assert not re.search(r"(^|/)(__pycache__|runs|\.venv)/|\.(pyc|nbi|nbc|orig|rej|tmp)$", name), (
            f"{name} is a leftover"
        )


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.sh")), ids=lambda path: path.name)
def test_a_recipe_is_made_of_commands_that_are_accepted(recipe):
    text = re.sub(r"\\\n\s*", " ", recipe.read_text(encoding="utf-8"))
    commands = llmpy_commands(text)
    assert commands
    for command in commands:
        assert_parses(command)
