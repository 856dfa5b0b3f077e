"""What a pair's row holds does not depend on its neighbours: other orders, shards, batches, threads and machines' workers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.dataset.build import build_dataset
from data.pipeline.config import Config, parse_config
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.scores.basic import build_basic_scores
from data.scores.duplicates import build_duplicates
from data.upkeep.reshard import reshard
from data.views.build import build_base_view
from embed.encoding import stage, table
from embed.encoding.stage import build_embeddings
from embed.format import as_matrix
from embed.verify import COSINE_TOLERANCE, verify_cache
from tests.conftest import make_config, save_tiny_clip, tree_bytes

IMAGES = 13
CAPTIONS = ("a red ring", "a blue cube on a white background", "red " * 40, "Zwölf Boxkämpfer & 日本語", "a ring")
SAME = 1e-6  # 1 - cosine of stored vectors in fp32, which docs/embeddings.md states
STEP = 2.0**-11  # of float16 between 0.5 and 1: components differ by one step at most


def write_images(folder: Path, order: Sequence[int]) -> Path:
    """The same images and captions for every order; image i is file order.index(i)."""
    folder.mkdir(parents=True)
    rows = ["file,caption"]
    for place, i in enumerate(order):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 33 + i, 3), dtype=np.uint8)
        pixels[: 3 * i] = 7 * i
        Image.fromarray(pixels).save(folder / f"{place:02d}.png")
        rows += [f"{place:02d}.png,{caption}" for caption in (CAPTIONS[i % 5], CAPTIONS[(i + 2) % 5], f"number {i}")]
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    return folder


def settings(folder: Path, images: Path, per_shard: int, embeddings: dict[str, Any]) -> Config:
    if not (folder / "tiny-clip").exists():
        save_tiny_clip(folder / "tiny-clip")
    dataset = {
        "folder": {"path": str(images)}, "image": {"mode": "no", "format": "png", "min_side": 8}, "samples_per_shard": per_shard,
    }  # fmt: skip
    return make_config(folder, dataset=dataset, embeddings=embeddings)


def rows_of(run: Run) -> pd.DataFrame:
    """The cache's rows by image and caption, which orders and shards leave alone."""
    names = [receipt.name for receipt in run.embeddings.receipts() if receipt.name != "null"]
    table = pa.concat_tables([pq.read_table(run.embeddings.folder / f"{name}.parquet") for name in names])
    frame = table.select(
        ["image_hash", "caption", "caption_hash", "token_ids", "n_tokens", "width", "height"]
    ).to_pandas()
    for side in ("image", "text"):
        frame[side] = list(as_matrix(table[f"{side}_embedding"], "<f2", 32).astype(np.float64))
        frame[f"{side}_norm"] = table[f"{side}_norm"].to_numpy()
    frame["clip_score"] = table["clip_score"].to_numpy()
    return frame.sort_values(["image_hash", "caption"]).reset_index(drop=True)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("first")
    run = Run.open(settings(folder, write_images(folder / "images", range(IMAGES)), 4, {}))
    build_dataset(run, InProcess())
    build_embeddings(run, InProcess())
    return run


def distance(ours: pd.DataFrame, theirs: pd.DataFrame, side: str) -> np.ndarray:
    """1 - cosine, row by row."""
    a, b = (np.stack(frame[side]) for frame in (ours, theirs))
    return 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def assert_same_values(run: Run, other: Run) -> None:
    ours, theirs = rows_of(run), rows_of(other)
    assert len(ours) == len(theirs) == 3 * IMAGES
    exact = ["image_hash", "caption", "caption_hash", "token_ids", "n_tokens", "width", "height"]
    pd.testing.assert_frame_equal(ours[exact], theirs[exact])
    for side in ("image", "text"):
        assert distance(ours, theirs, side).max() < SAME < COSINE_TOLERANCE["fp32"]
        assert np.abs(np.stack(ours[side]) - np.stack(theirs[side])).max() <= STEP
        np.testing.assert_allclose(ours[f"{side}_norm"], theirs[f"{side}_norm"], rtol=1e-5)
    np.testing.assert_allclose(ours["clip_score"], theirs["clip_score"], atol=1e-4)


@pytest.mark.parametrize(("batch", "per_shard"), [(64, 4), (3, 5), (1, 100)])
def test_permuted_resharded_and_other_batches_give_the_same_values(
    first: Run, tmp_path: Path, batch: int, per_shard: int
) -> None:
    order = np.random.default_rng(batch).permutation(IMAGES).tolist()
    images = write_images(tmp_path / "images", order)
    other = Run.open(settings(tmp_path, images, per_shard, {"batch": batch, "row_group": 5}))
    build_dataset(other, InProcess())
    build_embeddings(other, InProcess())
    assert_same_values(first, other)


def test_a_view_written_out_again_keeps_its_values(first: Run) -> None:
    build_basic_scores(first, InProcess())
    build_duplicates(first, InProcess())
    build_base_view(first, InProcess())
    target = reshard(first, "base", "again", InProcess())
    build_embeddings(target, InProcess())
    kept = rows_of(target).set_index(["image_hash", "caption"])
    ours = rows_of(first).set_index(["image_hash", "caption"]).loc[kept.index]
    assert len(kept) > 20
    for side in ("image", "text"):
        assert distance(ours, kept, side).max() < SAME


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_give_the_same_bytes(first: Run, tmp_path: Path, threads: int) -> None:
    """They are volatile settings: the cache of other ones is the same, and is taken as it stands."""
    images = write_images(tmp_path / "images", range(IMAGES))
    more = {"threads": threads, "decode_threads": 4 - threads}
    other = Run.open(settings(tmp_path, images, 4, more))
    build_dataset(other, InProcess())
    build_embeddings(other, InProcess())
    assert tree_bytes(other.embeddings.folder) == tree_bytes(first.embeddings.folder)


def test_each_distinct_caption_is_encoded_once_and_the_null_caption_once(
    first: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    encode = stage.encode_captions

    def recorded(clip: Any, captions: Sequence[str], batch: int) -> Any:
        asked.append(list(captions))
        return encode(clip, captions, batch)

    for module in (stage, table):
        monkeypatch.setattr(module, "encode_captions", recorded)
    run = Run.open(settings(tmp_path, write_images(tmp_path / "images", range(IMAGES)), 100, {}))
    build_dataset(run, InProcess())
    build_embeddings(run, InProcess())
    assert asked[0] == [""] and len(asked) == 2
    assert len(asked[1]) == len(set(asked[1])) == IMAGES + len(CAPTIONS)
    counts = run.embeddings.manifest()["counts"]
    assert counts == {
        "samples": IMAGES, "pairs": 3 * IMAGES, "distinct_captions": IMAGES + len(CAPTIONS), "truncated_captions": 1, "null_captions": 1,
    }  # fmt: skip


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_is_recorded_and_stays_near(first: Run, tmp_path: Path, precision: str) -> None:
    images = write_images(tmp_path / "images", range(IMAGES))
    other = Run.open(settings(tmp_path, images, 4, {"precision": precision}))
    build_dataset(other, InProcess())
    build_embeddings(other, InProcess())
    for name in ("00000", "null"):
        metadata = pq.read_schema(other.embeddings.folder / f"{name}.parquet").metadata
        assert metadata[b"precision"] == precision.encode() and metadata[b"device"] == b"cpu"
    ours, theirs = rows_of(first), rows_of(other)
    for side in ("image", "text"):
        assert 1e-9 < distance(ours, theirs, side).max() < COSINE_TOLERANCE[precision]


def test_reduced_decoding_is_recorded_and_verified_by_its_own_rule(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    rows = ["file,caption"]
    for i in range(4):
        noise = np.random.default_rng(i).integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((200, 161), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
        rows.append(f"{i}.png,number {i}")
    (folder / "captions.csv").write_text("\n".join(rows))
    runs = []
    for reduced in (False, True):
        config = settings(tmp_path / str(reduced), folder, 10, {"reduced_decode": reduced}).to_dict()
        config["dataset"]["image"]["format"] = "jpg"
        run = Run.open(parse_config(config, "test"))
        build_dataset(run, InProcess())
        build_embeddings(run, InProcess())
        assert verify_cache(run) == []
        facts = pq.read_schema(run.embeddings.folder / "00000.parquet").metadata
        assert facts[b"reduced_decode"] == (b"true" if reduced else b"false")
        runs.append(run)
    full, small = (
        as_matrix(pq.read_table(r.embeddings.folder / "00000.parquet")["image_embedding"], "<f2", 32) for r in runs
    )
    assert (full != small).any() and np.abs(full.astype(float) - small.astype(float)).max() < 0.05
