"""CONTRIBUTING.md's recipes, followed in a copy of the repository: what they add is used there for real."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text()
ROOMS = ("data", "embed", "training", "eval", "humaneval", "dashboards")
HEAD = re.compile(r"# (?P<path>[\w/.]+\.py)(?:, (?P<how>after|before|instead of): (?P<line>.+))?")
# A dataset of scenes in a folder, for a config in TOML.
DATASET = '[run]\nname = "t"\n[cluster]\nworkers = 0\n[dataset]\nsamples_per_shard = 20\n[dataset.image]\nsize = 32\nformat = "png"\n'
SCENES = "[dataset.scenes]\nsamples = 40\nside = 32\n[dataset.split]\nval = 0.3\ntest = 0.1\n"


@dataclass(frozen=True)
class Block:
    """A block of code: a new file, or lines that go to the one line of a file that holds `line`."""

    path: str
    how: str | None
    line: str | None
    code: str

    def write(self, root: Path) -> None:
        target = root / self.path
        if self.how is None:
            assert not target.exists(), f"{self.path} exists: the recipe calls it new"
            target.write_text(self.code)
            return
        lines = target.read_text().splitlines(keepends=True)
        found = [i for i, text in enumerate(lines) if self.line in text]
        assert len(found) == 1, f"{self.path} has {len(found)} lines with {self.line!r}, the recipe needs one"
        start = found[0] + (self.how == "after")
        lines[start : start + (self.how == "instead of")] = self.code.splitlines(keepends=True)
        target.write_text("".join(lines))


def recipe(title: str) -> str:
    found = re.search(rf"^### {title}\n(.*?)(?=^### |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None, f"CONTRIBUTING.md has no recipe {title!r}"
    return found[1]


def blocks(title: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", recipe(title), re.MULTILINE | re.DOTALL)


def steps(title: str) -> list[Block]:
    found = []
    for block in blocks(title):
        first, _, code = block.partition("\n")
        head = HEAD.fullmatch(first)
        assert head is not None, f"{title}: {first!r} does not say where the block goes"
        found.append(Block(head["path"], head["how"], head["line"], code))
    assert found
    return found


@pytest.fixture
def follow(tmp_path: Path) -> Callable[[str], Path]:
    """Copies the rooms, writes a recipe's blocks there and returns the copy's folder."""

    def followed(title: str) -> Path:
        root = tmp_path / "copy"
        for room in ROOMS:
            shutil.copytree(REPOSITORY / room, root / room, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "pyproject.toml", root)
        for block in steps(title):
            block.write(root)
        return root

    return followed


def run(root: Path, code: str) -> str:
    """Run Python in the copy, whose rooms come before the installed ones. Returns what it printed."""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def commands(config: Path, *lines: str) -> str:
    """Code that runs front doors, `<room> <command> [options]`, one after the other in one process."""
    return f"""
import contextlib, importlib, io, sys
from data.pipeline.cli import front_door
for line in {lines!r}:
    room, *words = line.split()
    code = front_door(room, "", importlib.import_module(room + ".__main__").COMMANDS, [words[0], "--config", {str(config)!r}, *words[1:]])
    assert code == 0, line
"""


def test_every_recipe_is_followed_here() -> None:
    titles = re.findall(r"^### (.+)$", TEXT, re.MULTILINE)
    assert titles == ["Add a source", "Add a score", "Add a network", "Add a metric", "Add a page"]


def test_recipes_are_in_the_house_style(tmp_path: Path) -> None:
    """ruff says the same of a copy in which all of them were followed as of the repository."""
    for room in ROOMS:
        shutil.copytree(REPOSITORY / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    written = set()
    for title in re.findall(r"^### (.+)$", TEXT, re.MULTILINE):
        for block in steps(title):
            block.write(tmp_path)
            written.add(block.path)
    for command in (["check"], ["format", "--check", "--diff"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--no-cache", *sorted(written)]
        done = subprocess.run(ruff, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_add_a_source(follow: Callable[[str], Path], tmp_path: Path) -> None:
    root, photos = follow("Add a source"), tmp_path / "photos"
    photos.mkdir()
    config = tmp_path / "t.toml"
    config.write_text(f'{DATASET}[dataset.named]\npath = "{photos}"\n')
    code = f"""
from data.sources.scene_world import draw, scene
for i, name in enumerate(("a_red_square", "a_blue_circle", "a_cross")):
    draw(scene(0, i), 32).save(f"{photos}/{{name}}.png")
{commands(config, "data build")}
from data.dataset.shards import ShardReader
from data.pipeline.config import load_config
from data.pipeline.run import Run
reader = ShardReader(Run(load_config({str(config)!r})).dataset)
print([reader.meta(key)["captions"] for key in reader.keys()])
"""
    assert run(root, code).splitlines()[-1] == "[['a blue circle'], ['a cross'], ['a red square']]"


def test_add_a_score(follow: Callable[[str], Path], tmp_path: Path) -> None:
    """It is made, a rule of the view `base` compares it, and status and lineage know it."""
    root, config = follow("Add a score"), tmp_path / "t.toml"
    rule = blocks("Add a score", "toml")[0].replace("20.0", "1e9")
    config.write_text(DATASET + SCENES + rule)
    code = f"""
{commands(config, "data build", "data scores", "data view")}
import pyarrow.parquet as pq
from data.pipeline.config import load_config
from data.pipeline.run import Run
from data.reports.status import run_status
run = Run(load_config({str(config)!r}))
table = pq.read_table(run.scores("sharpness").folder / "00001.parquet")
assert table.column_names == ["key", "caption_index", "sharpness"] and len(table) == 40 and min(table["sharpness"].to_pylist()) > 0
assert "scores/sharpness:00001" in dict(run.view("base").inputs()["00001"])
print(run.view("base").manifest()["counts"])
print({{s.name: s.state for s in run_status(run)}}["scores/sharpness"])
"""
    *_, counts, state = run(root, code).splitlines()
    assert "'dropped_image_not_sharp_pairs': " in counts and "'kept_pairs': 0" in counts
    assert state == "complete"


def test_add_a_metric(follow: Callable[[str], Path]) -> None:
    """It is computed from features and stands in the table, from which the report's page reads it."""
    code = """
import json
from pathlib import Path
import numpy as np
from eval.metrics.families import FOLLOWING
from eval.metrics.measure import measure
from eval.metrics.subject import ClipJudge, Subject
from eval.report.page import tables
from eval.statistics.bootstrap import caption_draws
from eval.table import Whose, read_rows, rows_of, write_rows
rng = np.random.default_rng(0)
images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rng.normal(size=(20, 8)), rng.normal(size=(10, 8))))
subject = Subject(np.repeat(np.arange(10), 2), [{}] * 10, caption_draws(10, 100, 0), clip=ClipJudge("clip:test", images, texts))
write_rows(Path("metrics.parquet"), rows_of(measure(subject, FOLLOWING), Whose("system", "unclip", 1.0), 0), {"seed": 0})
rows, _ = read_rows(Path("metrics.parquet"))
found = next(row for row in rows if row.metric.family == "spread")
shown = [metric.name for table in tables(rows, ["unclip"]) for metric, _ in table["lines"]]
print(json.dumps([found.value, found.lo, found.hi, found.n, found.metric.name in shown]))
"""
    value, lo, hi, n, shown = json.loads(run(follow("Add a metric"), code))
    assert 0 < lo <= value <= hi < 2 and n == 10 and shown


def test_add_a_page(follow: Callable[[str], Path], tmp_path: Path) -> None:
    """The researchers' script offers it, and it draws what a run's commands took."""
    root, config = follow("Add a page"), tmp_path / "t.toml"
    config.write_text(DATASET + SCENES)
    code = f"""
import sys, time
import streamlit as st
from streamlit.testing.v1 import AppTest
from data.pipeline.config import load_config
from data.pipeline.cost import measured
from data.pipeline.run import Run
run = Run.open(load_config({str(config)!r}))
run.logs.mkdir(parents=True)
with measured(run.logs, "data build"):
    pass
sys.argv[1:] = ["--config", {str(config)!r}]
titles, real = [], st.navigation

def only_the_new_one(pages):
    titles[:] = [page.title for page in pages]
    return real([page for page in pages if page.title == "Cost"])

st.navigation = only_the_new_one
page = AppTest.from_file("dashboards/app.py", default_timeout=60).run()
assert not page.exception, page.exception
assert "Cost" in titles and len(titles) >= 2, titles
assert page.title[0].value == "Cost" and list(page.dataframe[0].value["name"]) == ["data build"]
"""
    run(root, code)


def test_add_a_network(follow: Callable[[str], Path], tmp_path: Path) -> None:
    """Its command is there, a row of [systems] may name it, and it is called as samplers call networks."""
    root, config = follow("Add a network"), tmp_path / "t.toml"
    config.write_text(DATASET + SCENES + blocks("Add a network", "toml")[0] + "[decoder.architecture]\nside = 16\n")
    code = f"""
import torch
from data.pipeline.config import load_config
from training.__main__ import COMMANDS
from training.networks.conditions import Captions, ClipShape, PriorCondition
from training.networks.direct_prior import build_direct_prior
from training.sampling.prior import KINDS
from training.settings import DirectPriorSettings, SystemsSettings
config = load_config({str(config)!r})
assert "direct_prior" in config[SystemsSettings].models() and "direct_prior" in [command.name for command in COMMANDS]
described = {{"architecture": config[DirectPriorSettings].architecture.model_dump(), "clip": vars(ClipShape(8, 5, 10))}}
assert KINDS["direct_prior"] is build_direct_prior
network = build_direct_prior(described)
captions, drop = Captions(torch.zeros(3, 5, dtype=torch.int64), torch.ones(3, dtype=torch.int64)), torch.tensor([False, True, True])
out = network(torch.zeros(3, 8), torch.zeros(3), PriorCondition(captions, torch.randn(3, 8), drop))
assert out.shape == (3, 8) and torch.equal(out[1], out[2]) and not torch.equal(out[0], out[1])
"""
    run(root, code)


@pytest.mark.slow
def test_the_added_network_trains_and_draws(follow: Callable[[str], Path], tmp_path: Path) -> None:
    """Two steps on a cache of its own; status knows the model, and z_i are drawn from it."""
    root, config = follow("Add a network"), tmp_path / "t.toml"
    (root / "tests").mkdir()
    for name in ("__init__.py", "conftest.py"):
        shutil.copy(REPOSITORY / "tests" / name, root / "tests")
    config.write_text(
        f'{DATASET}{SCENES}[clip]\nsource = "checkpoint"\npath = "{tmp_path}/clip"\n{blocks("Add a network", "toml")[0]}'
        "[decoder.architecture]\nside = 16\n[direct_prior]\nvalidation_samples = 4\n[direct_prior.optimiser]\nsteps = 2\nbatch = 4\n"
    )
    made = ("data build", "data scores", "data view", "embed build", "embed scores", "data view --name train")
    code = f"""
from pathlib import Path
from tests.conftest import save_tiny_clip
Path({str(tmp_path)!r}, "clip").mkdir()
save_tiny_clip(Path({str(tmp_path)!r}, "clip"))
{commands(config, *made, "training direct_prior")}
from data.pipeline.config import load_config
from data.pipeline.run import Run
from data.reports.status import run_status
from embed.clip.model import load_clip
from training.sampling.batches import captions_of
from training.sampling.prior import load_prior, sample_prior
from training.checkpoints import read_log
run = Run(load_config({str(config)!r}))
clip = load_clip(run)
ids = clip.tokenize(["a red square"])
z_i = sample_prior(load_prior(run.model("direct_prior"), clip.identity), captions_of(clip, ids), clip.encode_text(ids), [0], steps=2)
assert z_i.shape == (1, clip.embed_dim) and abs(float(z_i.norm()) - 1) < 1e-4
print(read_log(run.model("direct_prior"))[-1][:2])
print({{s.name: s.state for s in run_status(run)}}["models/direct_prior"])
"""
    *_, last, state = run(root, code).splitlines()
    assert last == "(2, 'val/loss')" and state == "complete"
