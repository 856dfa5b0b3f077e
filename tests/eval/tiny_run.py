"""A tiny run on disk: real artifacts of the synthetic world, two fake systems whose quality is known, a fake CLIP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from data.dataset.shards import Sample, ShardWriter
from data.pipeline.artifacts import Artifact
from data.pipeline.config import parse_config
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.pipeline.runner import run_stage
from data.pipeline.stage import Input, PartSpec, Stage
from data.sources import scene_world as world
from data.views.settings import ViewsSettings
from eval.extract.clip import ClipExtractor
from eval.generate import generate, jobs
from eval.images import write_png
from eval.prompts import make_prompts
from eval.settings import EvalSettings

SIDE = 16
N = 360
HOSTILE = "<script>alert('x')</script> & a \"red\" square on a white background"
STORED = {"planned_samples": N, "planned_pairs": 2 * N, "stored_samples": N, "stored_pairs": 2 * N}
KEPT = {"samples": N, "pairs": 2 * N, "kept_samples": N, "kept_pairs": 2 * N}


def split_of(i: int) -> str:
    return "test" if i % 4 == 0 else "val" if i % 4 == 1 else "train"


def write_dataset(spec: PartSpec, attempt: Path) -> dict[str, int]:
    writer = ShardWriter(attempt / "shards" / "00000.tar")
    for i in range(N):
        scene = world.scene(0, i)
        records = world.captions(scene, 0, i)
        meta = {
            "captions": [r.text for r in records], "split": split_of(i), "attributes": world.sample_attributes(scene, records),
        }  # fmt: skip
        writer.write(Sample(f"{i:06d}", write_png(np.asarray(world.draw(scene, 64))), "png", meta))
    writer.close()
    (attempt / "ledger").mkdir()
    ledger = pa.table({"key": [f"{i:06d}" for i in range(N)], "reason": pa.nulls(N, pa.string())})
    pq.write_table(ledger, attempt / "ledger" / "00000.parquet")
    return STORED


def write_view(spec: PartSpec, attempt: Path) -> dict[str, int]:
    pairs = [(f"{i:06d}", c) for i in range(N) for c in range(2)]
    columns = {"key": [k for k, _ in pairs], "caption_index": pa.array([c for _, c in pairs], pa.int32())}
    pq.write_table(pa.table(columns | {"keep": [True] * len(pairs)}), attempt / "00000.parquet")
    return KEPT


class FakeClip:
    """Embeds an image as its mean colour by quadrant, a caption as random numbers fixed by its text; both at unit length."""

    identity = "ab" * 32
    embed_dim = 12

    def tokenize(self, captions: Sequence[str]) -> list[str]:
        return list(captions)

    def encode_text(self, captions: Sequence[str]) -> torch.Tensor:
        rows = [np.random.default_rng(list(c.encode())).normal(size=12) for c in captions]
        return torch.nn.functional.normalize(torch.from_numpy(np.stack(rows)).float(), dim=-1)

    def encode_images(self, images: np.ndarray) -> torch.Tensor:
        x = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2), 2)
        return torch.nn.functional.normalize(x.flatten(1) - 128, dim=-1)


@dataclass(frozen=True)
class FakeSource:
    """Where a FakeClip is loaded from."""

    def load(self) -> FakeClip:
        return FakeClip()


def fake_clip(run: Run) -> ClipExtractor:
    """In place of `ClipExtractor.open`."""
    return ClipExtractor(FakeSource(), FakeClip.identity)


@dataclass(frozen=True)
class FakeSystem:
    """Draws what the caption says (`faithful`) or scenes that have nothing to do with it. `calls` are those of this process."""

    name: str
    faithful: bool
    inputs: tuple[Input, ...] = ()
    calls: list[float] = field(default_factory=list, compare=False)
    side = SIDE
    steps = 5
    guidance_prior = None
    sampling: Mapping[str, float] = field(default_factory=lambda: {"batch": 8})

    def generate(self, captions: Sequence[str], seeds: Sequence[int], guidance: float) -> np.ndarray:
        self.calls.append(guidance)
        return np.stack([self._draw(c, s) for c, s in zip(captions, seeds, strict=True)])

    def _draw(self, caption: str, seed: int) -> np.ndarray:
        scene = world.scene(1, seed, two_objects=0.0)
        words = set(caption.replace("<", " ").split()) if self.faithful else set()
        thing = scene.objects[0]
        said = {n: next((v for v in table if v in words), getattr(thing, n)) for n, table in TABLES.items()}
        thing = world.Thing(**said, position=thing.position)
        background = next((b for b in world.BACKGROUNDS if b in words), scene.background)
        image = world.draw(world.Scene((thing,), background, scene.texture, scene.phase), 64)
        return np.asarray(image.reduce(64 // SIDE))


TABLES = {"shape": world.SHAPES, "colour": world.COLOURS, "size": world.SIZES}


def write_model(spec: PartSpec, attempt: Path) -> dict[str, int]:
    (attempt / "model").write_text(spec.work)
    return {}


def train(run: Run, name: str, version: int = 1) -> None:
    """A stand-in for a model: only its digest matters to eval."""
    part = PartSpec("model", (Input("views/train", run.view("train").digest()),), f"weights {version}")
    run_stage(Stage(f"train-{name}", version, run.folder / "models" / name, {}, [part], write_model), InProcess())


MODELS = {"unclip": ("prior", "decoder"), "glide": ("glide",)}


def fake_system(run: Run, name: str) -> FakeSystem:
    """The first system is faithful."""
    inputs = tuple(Input(f"models/{model}", run.model(model).digest()) for model in MODELS[name])
    return FakeSystem(name, name == "unclip", inputs)


def draw_all(run: Run, systems: Sequence[str] = ("unclip", "glide")) -> list[Artifact]:
    """Prompt sets, and every system's images of them."""
    make_prompts(run, InProcess())
    settings = run.config[EvalSettings]
    wanted = [job for name in systems for job in jobs(fake_system(run, name), settings, run.seed)]
    return generate(run, wanted, InProcess())


def make_run(folder: Path, systems: dict | None = None, **settings: object) -> Run:
    tables = {
        "systems": systems or {},
        "humaneval": {"questions": dict.fromkeys(("photorealism", "caption_similarity", "diversity"), 0)},
        "run": {"name": "tiny", "folder": str(folder), "seed": 3},
        "dataset": {"scenes": {"samples": N}, "split": {"val": 0.25, "test": 0.25}},
        "eval": {
            "captions": {"captions": 44, "images": 2, "two_object": 4}, "grids": {"captions": 3, "images": 16},
            "guidance": [1.0, 2.0], "reference_images": 150, "bootstrap_draws": 200,
            "attributes": {"scenes": 180, "held_out": 60, "steps": 60, "batch": 32, "width": 8}, **settings,
        },
    }  # fmt: skip
    run = Run.open(parse_config(tables, "test"))
    run_stage(Stage("dataset", 1, run.dataset.folder, {}, [PartSpec("00000")], write_dataset), InProcess())
    views = run.config[ViewsSettings]
    for name, settings in (("base", views.base), ("train", views.train)):
        thresholds = settings.model_dump(mode="json")
        run_stage(
            Stage(f"view-{name}", 1, run.view(name).folder, thresholds, [PartSpec("00000")], write_view), InProcess()
        )
    for name in ("prior", "decoder", "glide"):
        train(run, name)
    return run
