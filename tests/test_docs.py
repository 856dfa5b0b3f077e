"""The documents say what is there: paths, functions, commands, targets, settings, stages."""

import argparse
import ast
import importlib
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

from data.pipeline.cli import Command
from data.pipeline.config import parse_config, section_model
from data.pipeline.lineage import row_of, stage_rows
from data.pipeline.rooms import SECTIONS
from tests.conftest import REPOSITORY

ROOMS = ("data", "embed", "training", "eval", "humaneval", "dashboards")
FOLDERS = (*ROOMS, "docs", "configs", "tests", "benchmarks")
GUIDES = ("data", "embeddings", "training", "evaluation", "humaneval", "dashboards", "architecture", "contracts", "log")
PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", *(f"docs/{name}.md" for name in GUIDES)]
PATH = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`")
FUNCTIONS = re.compile(r"`([\w/]+\.py)`: ((?:`\w+`(?:, )?)+)")
DOTTED = re.compile(r"`((?:data|embed|training|eval|humaneval|dashboards)(?:\.\w+)+)`")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What a run writes, which a page may name as if it lay in the repository.
WRITTEN = (".json", ".jsonl", ".parquet", ".html", ".sqlite", ".csv", ".pt", ".tar", ".safetensors", ".toml")


def text(page: str) -> str:
    return (REPOSITORY / page).read_text()


def blocks(page: str, language: str) -> list[str]:
    return [code for found, code in BLOCK.findall(text(page)) if found == language]


def new_files() -> set[str]:
    """Files that the recipes of CONTRIBUTING.md make, and that are not there."""
    return set(re.findall(r"^# ([\w/]+\.py)$", text("CONTRIBUTING.md"), re.MULTILINE))


@cache
def defined(path: str) -> set[str]:
    """Names of the functions, methods, classes and constants of a file."""
    found = set()
    for node in ast.walk(ast.parse((REPOSITORY / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page: str) -> None:
    for path in PATH.findall(text(page)):
        is_run_folder = path.endswith("/") and row_of(path.rstrip("/").split("/NNNNN")[0]) is not None
        is_written = path.endswith(WRITTEN) and not path.startswith("configs/")
        if path not in new_files() and not is_run_folder and not is_written and not known_of_a_run(path):
            assert (REPOSITORY / path).exists(), f"{page} names {path}"


def known_of_a_run(path: str) -> bool:
    """Folders inside an artifact of a run."""
    return any(path.startswith(f"{row.name}/") for row in stage_rows() if "/" in row.name)


@pytest.mark.parametrize("page", PAGES)
def test_functions_are_defined_where_the_page_says(page: str) -> None:
    for path, names in FUNCTIONS.findall(text(page)):
        for name in re.findall(r"`(\w+)`", names):
            assert name in defined(path), f"{page}: {path} defines no {name}"


@pytest.mark.parametrize("page", PAGES)
def test_dotted_names_are_modules_or_settings(page: str) -> None:
    for name in DOTTED.findall(text(page)):
        assert is_in_a_module(name) or is_setting(name), f"{page} names {name}"


def is_in_a_module(name: str) -> bool:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        path = "/".join(parts[:end])
        if (REPOSITORY / f"{path}.py").is_file():
            return end == len(parts) or parts[end] in defined(f"{path}.py")
    return (REPOSITORY / "/".join(parts)).is_dir()


def is_setting(dotted: str) -> bool:
    """Whether a config may say it; of unions and tables with names of their own, whether it may say what is above."""
    section, *rest = dotted.split(".")
    if section not in SECTIONS:
        return False
    model = section_model(section)
    for name in rest:
        field = getattr(model, "model_fields", {}).get(name)
        if field is None:
            return model is None
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    return True


@cache
def commands(room: str) -> dict[str, Command]:
    """The commands of a room's front door, by name."""
    module = importlib.import_module(f"{room}.__main__")
    found = list(getattr(module, "COMMANDS", ()))
    if not found:  # listed where the door is opened
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "front_door", lambda room, about, listed, *_: found.extend(listed) or 0)
            module.main()
    return {command.name: command for command in found}


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_exist(page: str) -> None:
    for room, name, rest in re.findall(rf"python -m ({'|'.join(ROOMS)}) ([a-z][a-z-]*)([^`\n]*)", text(page)):
        assert name in commands(room), f"{page}: python -m {room} {name}"
        parser = argparse.ArgumentParser()
        if options := commands(room)[name].options:
            options(parser)
        known = {"--config", *(option for action in parser._actions for option in action.option_strings)}
        for option in re.findall(r"(?<!\S)(--[a-z-]+)", rest):
            assert option in known, f"{page}: python -m {room} {name} {option}"
    for module in re.findall(r"python -m (benchmarks\.\w+)", text(page)):
        assert (REPOSITORY / f"{module.replace('.', '/')}.py").is_file(), f"{page}: {module}"


@pytest.mark.parametrize("page", PAGES)
def test_targets_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    code = "\n".join([*re.findall(r"`(make [^`\n]+)`", text(page)), *blocks(page, "sh"), *blocks(page, "text")])
    for line in re.findall(r"^(?:\.\.\. )?make ([^\n#]+)", code, re.MULTILINE):
        for word in line.split("  ")[0].split():
            assert "=" in word or word in targets, f"{page}: make {word}"


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CONTRIBUTING.md"])
def test_configs_are_valid(page: str) -> None:
    for block in blocks(page, "toml"):
        tables = tomllib.loads(block)
        if "run" in tables:
            parse_config(tables, page)


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_no_page_names_this_machine(page: str) -> None:
    assert not re.search(r"(?<![\w.])/(?:work|tmp|root|home)\b", text(page)), page


def diagram() -> tuple[dict[str, tuple[str, str]], set[tuple[str, str]]]:
    """(identifier -> (artifact, command), edges as pairs of artifacts) of the picture in docs/architecture.md."""
    (code,) = blocks("docs/architecture.md", "mermaid")
    nodes = {name: (artifact, command) for name, artifact, command in re.findall(r'(\w+)\["(.+?)<br/>(.+?)"\]', code)}
    edges = re.findall(r"^    (\w+) (?:-->|-\.->) (\w+)$", code, re.MULTILINE)
    assert len(code.splitlines()) == 1 + len(nodes) + len(edges), "a line of the diagram is neither node nor edge"
    return nodes, {(nodes[a][0], nodes[b][0]) for a, b in edges}


def test_the_diagram_shows_every_stage_with_its_command() -> None:
    nodes, edges = diagram()
    # What somebody's own code makes has no place of its own: `scores/*` and `views/*` beside the named ones.
    rows = [row for row in stage_rows() if row.name not in ("scores/*", "views/*")]
    assert set(nodes.values()) == {(row.name, row.command) for row in rows}
    order = [row.name for row in rows]
    for above, below in edges:
        assert order.index(above) < order.index(below), f"{below} is made from {above}, which is made later"
    follows = {(row.follows, row.name) for row in rows if row.follows}
    below = {(a, c) for a, b in edges for b2, c in edges if b == b2}
    deep = edges | below | {(a, d) for a, b in below for b2, d in edges if b == b2}
    assert follows <= deep, "a stage has a part for each part of something that it is not made from"


def test_datas_way_goes_on_and_never_back() -> None:
    """Steps are numbered, and what they write comes in the order in which artifacts are made."""
    rows = re.findall(r"^\| (\d+) \| (.+?) \| .+? \|(.*)\|$", text("docs/architecture.md"), re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, len(rows) + 1))
    order = [row.name for row in stage_rows()]
    reached = 0
    for number, where, written in rows:
        assert FUNCTIONS.search(where), f"step {number} names no function"
        for path in re.findall(r"`([^`]+)`", written):
            artifact = next(row for row in stage_rows() if is_of(row.name, path))
            place = order.index(artifact.name)
            # Models are made side by side, in no order.
            assert place >= reached or artifact.name.startswith("models/"), f"step {number} writes {path} too late"
            reached = max(reached, place)
    assert rows[-1][2].count("report.json") == 1


def is_of(pattern: str, path: str) -> bool:
    depth = pattern.count("/") + 1
    head = "/".join(path.split("/")[:depth])
    return len(path.split("/")) > depth and Path(head).match(pattern)


def test_every_sub_room_is_listed_and_imports_only_what_stands_above_it() -> None:
    listed = re.findall(r"^\| `((?:\w+)/(?:\w+)/)` \|", text("docs/architecture.md"), re.MULTILINE)
    there = {
        p.parent.relative_to(REPOSITORY).as_posix() + "/" for r in ROOMS for p in REPOSITORY.glob(f"{r}/*/__init__.py")
    }
    assert set(listed) == there and len(listed) == len(there)
    for i, folder in enumerate(listed):
        allowed = listed[: i + 1]
        room = folder.split("/")[0]
        for path in (REPOSITORY / folder).rglob("*.py"):
            for module in re.findall(rf"^\s*(?:from|import) ({room}\.\w+)", path.read_text(), re.MULTILINE):
                other = module.replace(".", "/") + "/"
                if other in listed:
                    assert other in allowed, f"{path} imports {other}, which docs/architecture.md lists below {folder}"
