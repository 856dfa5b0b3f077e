"""The architecture as a test: imports go down only, no file or function grows past what one can read."""

import ast
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


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_down_only(path: Path) -> None:
    tree = ast.parse((REPOSITORY / path).read_text())
    for node in ast.walk(tree):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}:{node.lineno}: relative import"
        for room in {name.split(".")[0] for name in names} & ALLOWED.keys():
            assert room in ALLOWED[path.parts[0]], f"{path}:{node.lineno}: {path.parts[0]} imports {room}"


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
