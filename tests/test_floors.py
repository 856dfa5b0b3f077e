"""The architecture as a test: imports go down only, no file or function grows past what one can read."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

ALLOWED = {
    "data": {"data"},
    "embed": {"data", "embed"},
    "training": {"data", "embed", "training"},
    "eval": {"data", "embed", "training", "eval"},
    "humaneval": {"data", "humaneval"},
    "dashboards": {"data", "embed", "training", "eval", "humaneval", "dashboards"},
}
FILES = sorted(p.relative_to(REPOSITORY) for room in ALLOWED for p in (REPOSITORY / room).rglob("*.py"))


# The one file that may name modules of the rooms above it, as strings.
TABLE = Path("data/pipeline/rooms.py")
BY_STRING = re.compile(rf"({'|'.join(ALLOWED)})(\.\w+)+:\w+")


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, at the head of a file or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_down_only(path: Path) -> None:
    for line, module in imported(ast.parse((REPOSITORY / path).read_text())):
        assert not module.startswith("."), f"{path}:{line}: relative import"
        room = module.split(".")[0]
        assert room not in ALLOWED or room in ALLOWED[path.parts[0]], f"{path}:{line}: {path.parts[0]} imports {room}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_modules_are_named_by_string_in_one_table_only(path: Path) -> None:
    if path == TABLE:
        return
    for node in ast.walk(ast.parse((REPOSITORY / path).read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not BY_STRING.fullmatch(node.value), f"{path}:{node.lineno}: {node.value!r} belongs into {TABLE}"
        if isinstance(node, ast.Attribute | ast.Name):
            name = node.attr if isinstance(node, ast.Attribute) else node.id
            assert name not in ("import_module", "__import__"), f"{path}:{node.lineno}: imports by name"


def test_no_import_inside_a_function_only_avoids_a_circle() -> None:
    """Of the rooms' own modules functions import only in front doors, stage tables and where a heavy library hangs on it."""
    found = []
    for path in FILES:
        tree = ast.parse((REPOSITORY / path).read_text())
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef):
                continue
            for line, module in imported(function):
                if module.split(".")[0] in ALLOWED and path.name not in ("__main__.py", "stages.py"):
                    found.append(f"{path}:{line}: {module}")
    assert found == [], "import at the head, or say here why not"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = (REPOSITORY / path).read_text()
    assert text.count("\n") <= 400, f"{path} has {text.count(chr(10))} lines; what are its two halves called?"
    assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring at its head"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= 70, f"{path}:{node.lineno}: {node.name} is {lines} lines long"


@pytest.mark.parametrize("room", ["data", "embed", "training", "eval", "humaneval"])
def test_front_doors_do_not_import_torch_to_print_their_help(room: str) -> None:
    import subprocess
    import sys

    code = f"import sys, runpy\nsys.argv = ['x', '--help']\ntry:\n    runpy.run_module('{room}', run_name='__main__')\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
