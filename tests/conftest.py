"""Fixtures shared by all rooms."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tiny models gain nothing from a second thread, and lose much where two processes share two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sweeps", type=int, default=3, help="random-kill sweeps, seeds 0, 1, ... (slow tests; default 3)"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `sweep` runs once for each seed."""
    if "sweep" in metafunc.fixturenames:
        metafunc.parametrize("sweep", range(metafunc.config.getoption("--sweeps")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The whole system takes as long as half of the rest: first, so that a second process does that rest meanwhile."""
    items.sort(key=lambda item: item.path.name != "test_smoke.py")


@pytest.fixture(autouse=True, scope="session")
def _from_the_repository_root() -> None:
    os.chdir(REPOSITORY)


@pytest.fixture(scope="session")
def executor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The one Dask cluster of the test session: two worker processes."""
    from data.pipeline.executors import open_executor
    from data.pipeline.settings import ClusterSettings

    with open_executor(ClusterSettings(workers=2), tmp_path_factory.mktemp("cluster") / "scratch") as opened:
        yield opened


def make_config(folder: Path, **sections: Any) -> Any:
    """A small scenes config in `folder`; `sections` replace whole tables."""
    from data.pipeline.config import parse_config

    tables: dict[str, Any] = {
        "run": {"name": "t", "folder": str(folder), "seed": 3},
        "cluster": {"workers": 0},
        "dataset": {
            "scenes": {"samples": 30, "side": 32},
            "samples_per_shard": 10,
            "image": {"size": 32, "format": "png"},
            "split": {"val": 0.2, "test": 0.2},
        },
        "clip": {"source": "checkpoint", "path": str(folder / "tiny-clip")},
    }
    return parse_config(tables | sections, "test config")


def save_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """A random CLIP of 0.1 M parameters with the scene world's vocabulary."""
    import open_clip
    import torch

    from data.sources.scene_world import captions, scene
    from embed.clip.model import BPE_FILE, save_clip, shrink_bpe

    texts = [record.text for i in range(200) for record in captions(scene(0, i), 0, i, 2)]
    vocabulary = shrink_bpe(texts, folder / BPE_FILE)
    config = {
        "embed_dim": 32,
        "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32},
        "text_cfg": {"context_length": 32, "vocab_size": vocabulary, "width": 32, "heads": 2, "layers": 2},
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_clip(folder, open_clip.CLIP(**config), config)
    return folder


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of an artifact that is not a volatile fact, by relative path."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
        and p.relative_to(folder).parts[0] not in ("log", ".lock", "provenance.json", "README.md", "attempts")
    }


def exit_code_with_fault(fault: str, function: Callable[..., Any], *args: Any) -> int | None:
    """Run `function(*args)` in a fresh process that kills itself at the boundary `fault`; its exit code (-9: killed).

    Processes fork from a server that has imported the heavy libraries once, which makes a kill cost a tenth of a second.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["data.dataset.build", "img2dataset.downloader", "embed.encoding.stage", "embed.scores.similarity"]
    )
    process = context.Process(target=_with_fault, args=(fault, function, args))
    process.start()
    process.join(120)
    return process.exitcode


def _with_fault(fault: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ["UNCLIP_FAULT"] = fault
    function(*args)
