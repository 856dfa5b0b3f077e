"""The embedding cache: equal to open_clip's own encoding, keyed, resumable, and refused when it does not fit."""

import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from data.artifacts import Artifact, file_facts, publish_json, read_json
from data.dataset import build_dataset
from data.errors import UserError
from data.executors import InProcess
from data.filters.basic import build_basic_scores
from data.filters.duplicates import build_duplicates
from data.run import Run
from data.shards import ShardReader
from data.views import build_base_view, build_train_view
from embed.cache import as_matrix, fixed_binary
from embed.clip import load_clip, load_clip_folder
from embed.encoder import build_embeddings
from embed.reader import EmbeddingReader
from embed.scores import build_similarity
from embed.verify import verify_cache
from tests.conftest import exit_code_with_fault, make_config, save_tiny_clip, tree_bytes

VIEWS = {"train": {"rules": [{"scores": "similarity", "column": "similarity", "min": -1.0}]}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    save_tiny_clip(folder / "tiny-clip")
    run = Run.open(make_config(folder, views=VIEWS))
    build_dataset(run, InProcess())
    build_basic_scores(run, InProcess())
    build_duplicates(run)
    build_base_view(run)
    build_embeddings(run, InProcess())
    build_similarity(run)
    build_train_view(run)
    return run


@pytest.fixture
def copy(run: Run, tmp_path: Path) -> Run:
    """A private copy of the run to damage."""
    shutil.copytree(run.folder, tmp_path / "t")
    shutil.copytree(run.folder.parent / "tiny-clip", tmp_path / "tiny-clip")
    return Run(make_config(tmp_path, views=VIEWS))


def test_embeddings_equal_open_clips_own(run: Run) -> None:
    clip = load_clip(run)
    reader = EmbeddingReader(run.embeddings, identity=clip.identity)
    shards = ShardReader(run.dataset)
    _, _, preprocess = None, None, open_clip.image_transform(32, is_train=False)
    rows = np.arange(len(reader))
    batch = reader.fetch(rows)
    with torch.no_grad():
        images = torch.stack([preprocess(Image.fromarray(shards.image(key))) for key in batch.keys])
        image = normalize(clip.model.encode_image(images), dim=-1)
        captions = [shards.meta(key)["captions"][i] for key, i in zip(batch.keys, batch.caption_index, strict=True)]
        text = normalize(clip.model.encode_text(clip.tokenizer(captions)), dim=-1)
    assert reader.captions(rows) == captions
    assert (image - batch.image_embedding).abs().max() < 5e-4  # float16 storage
    assert (text - batch.text_embedding).abs().max() < 5e-4
    assert (clip.encode_text(clip.tokenize(captions)) - text).abs().max() < 1e-5
    assert torch.equal(batch.token_ids, clip.tokenizer(captions))
    assert torch.equal(batch.n_tokens, (batch.token_ids != 0).sum(dim=1))


def test_every_column_is_what_it_says(run: Run) -> None:
    table = pq.read_table(run.embeddings.folder / "00001.parquet")
    assert table.column_names == [
        "key", "caption_index", "uid", "caption", "caption_hash", "image_hash", "image_embedding", "image_norm", "text_embedding",
        "text_norm", "token_ids", "n_tokens", "clip_score", "width", "height", "split",
    ]  # fmt: skip
    pairs = list(zip(table["key"].to_pylist(), table["caption_index"].to_pylist(), strict=True))
    assert pairs == sorted(set(pairs)) and len(pairs) == 20
    vectors = [as_matrix(table[name], "<f2", 32).astype(np.float32) for name in ("image_embedding", "text_embedding")]
    assert np.allclose((vectors[0] * vectors[1]).sum(axis=1), table["clip_score"].to_numpy(), atol=1e-6)
    assert np.allclose(np.linalg.norm(vectors[0], axis=1), 1, atol=1e-3)


def test_workers_and_rerun_do_not_change_a_byte(run: Run, tmp_path: Path, executor: Any) -> None:
    save_tiny_clip(tmp_path / "tiny-clip")
    other = Run.open(make_config(tmp_path))
    build_dataset(other, InProcess())
    build_embeddings(other, executor)
    assert tree_bytes(other.embeddings.folder) == tree_bytes(run.embeddings.folder)


def embed(folder: Path) -> None:
    build_embeddings(Run.open(make_config(folder, views=VIEWS)), InProcess())


@pytest.mark.parametrize("fault", ["plan", "attempt@00001", "part@00000", "receipt@00002", "manifest"])
def test_sigkill_then_the_same_command_gives_the_same_bytes(copy: Run, run: Run, tmp_path: Path, fault: str) -> None:
    shutil.rmtree(copy.embeddings.folder)
    assert exit_code_with_fault(fault, embed, tmp_path) == -signal.SIGKILL
    assert not copy.embeddings.is_complete()
    embed(tmp_path)
    assert tree_bytes(copy.embeddings.folder) == tree_bytes(run.embeddings.folder)


def test_verify_accepts_the_cache_and_finds_a_swapped_pair(copy: Run) -> None:
    assert verify_cache(copy) == []
    path = copy.embeddings.folder / "00000.parquet"
    table = pq.read_table(path)
    vectors = as_matrix(table["image_embedding"], "<f2", 32).copy()
    vectors[[0, 4]] = vectors[[4, 0]]
    swapped = table.set_column(6, table.schema.field("image_embedding"), fixed_binary(vectors))
    pq.write_table(swapped, path)
    assert any("differs" in p or "bytes, recorded" in p for p in verify_cache(copy))


def test_images_of_unequal_sizes_are_re_encoded_too(tmp_path: Path) -> None:
    save_tiny_clip(tmp_path / "tiny-clip")
    images = tmp_path / "images"
    images.mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")
    (images / "captions.csv").write_text("file,caption\n" + "".join(f"{i}.png,a red ring\n" for i in range(4)))
    dataset = {"folder": {"path": str(images)}, "image": {"mode": "no", "format": "png"}}
    run = Run.open(make_config(tmp_path, dataset=dataset))
    build_dataset(run, InProcess())
    build_embeddings(run, InProcess())
    assert verify_cache(run) == []
    table = pq.read_table(run.embeddings.folder / "00000.parquet")
    vectors = as_matrix(table["image_embedding"], "<f2", 32)
    column = table.schema.get_field_index("image_embedding")
    turned = table.set_column(column, table.schema.field(column), fixed_binary(np.negative(vectors)))
    pq.write_table(turned, run.embeddings.folder / "00000.parquet")
    record_anew(run.embeddings, "00000", "00000.parquet")
    assert any("a stored image embedding is" in problem for problem in verify_cache(run))


def record_anew(artifact: Artifact, part: str, name: str) -> None:
    """Let receipt and manifest say that the damaged file is as it should be."""
    facts = file_facts(artifact.folder / name)
    receipt, manifest = artifact.folder / "parts" / f"{part}.json", artifact.manifest_path
    changed, whole = read_json(receipt, "receipt"), read_json(manifest, "manifest")
    changed["files"][name] = facts
    next(p for p in whole["parts"] if p["name"] == part)["files"][name] = facts
    publish_json(receipt, changed)
    publish_json(manifest, whole)


def test_a_cache_of_another_clip_is_refused(copy: Run, tmp_path: Path) -> None:
    other = load_clip_folder(save_tiny_clip(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match=r"was made with the CLIP tiny-clip .*not with the one in use"):
        EmbeddingReader(copy.embeddings, identity=other.identity)
    save_tiny_clip(tmp_path / "tiny-clip", seed=1)
    with pytest.raises(UserError, match=r"was made with clip.identity = .* delete .*embeddings to start over"):
        build_embeddings(copy, InProcess())


def test_a_changed_shard_is_embedded_again_and_only_that(copy: Run) -> None:
    log = copy.logs / "embeddings.jsonl"
    before = log.read_text().count("\n")
    receipt = copy.dataset.folder / "parts" / "00001.json"
    manifest = copy.dataset.manifest_path
    path = copy.dataset.folder / "shards" / "00001.tar"
    path.write_bytes(path.read_bytes() + b"\0" * 512)  # a tar may end in more zero blocks
    from data.artifacts import file_facts, publish_json, read_json

    facts = file_facts(path)
    changed = read_json(receipt, "receipt")
    changed["files"]["shards/00001.tar"] = facts
    publish_json(receipt, changed)
    whole = read_json(manifest, "manifest")
    whole["parts"][1]["files"]["shards/00001.tar"] = facts
    publish_json(manifest, whole)
    build_embeddings(copy, InProcess())
    assert [line for line in log.read_text().splitlines()[before:] if '"part": "00001"' in line]
    assert log.read_text().count("\n") == before + 1


def test_missing_part_foreign_view_and_empty_selection_are_refused(copy: Run, run: Run) -> None:
    with pytest.raises(UserError, match="no pair of the split 'nosuch' is left"):
        EmbeddingReader(copy.embeddings, split="nosuch")
    view = copy.view("base")
    path = view.folder / "00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(UserError, match=r"is not in the view .*made from different datasets"):
        EmbeddingReader(copy.embeddings, view)
    (copy.embeddings.folder / "00001.parquet").unlink()
    with pytest.raises(UserError, match=r"00001.parquet is missing although the manifest lists it"):
        EmbeddingReader(copy.embeddings)


def test_reader_order_is_a_seeded_permutation(run: Run) -> None:
    reader = EmbeddingReader(run.embeddings, run.view("train"), "train")
    assert sorted(reader.order(0, 0)) == list(range(len(reader)))
    assert (reader.order(0, 0) != reader.order(0, 1)).any() and (reader.order(0, 0) != reader.order(1, 0)).any()


def test_images_counts_each_image_once(run: Run) -> None:
    reader = EmbeddingReader(run.embeddings)
    keys, embeddings = reader.images()
    assert len(keys) == 30 == len(set(keys)) and embeddings.shape == (30, 32)
    row = int(np.flatnonzero(reader.keys == keys[7])[1])
    assert torch.equal(reader.fetch([row]).image_embedding[0], embeddings[7])


def test_null_caption_is_the_empty_caption(run: Run) -> None:
    clip = load_clip(run)
    null = EmbeddingReader(run.embeddings).null
    assert (clip.encode_text(clip.tokenize([""]))[0] - null.text_embedding).abs().max() < 5e-4
    assert torch.equal(null.token_ids, clip.tokenize([""])[0])


def test_similarity_is_the_cosine(run: Run) -> None:
    scores = pa.concat_tables([pq.read_table(run.scores("similarity").folder / f"0000{i}.parquet") for i in range(3)])
    batch = EmbeddingReader(run.embeddings).fetch(np.arange(60))
    assert scores["key"].to_pylist() == batch.keys
    assert np.allclose(
        scores["similarity"].to_numpy(), (batch.image_embedding * batch.text_embedding).sum(1), atol=1e-3
    )


def test_empty_view_is_one_line(copy: Run) -> None:
    config = make_config(
        copy.folder.parent, views={"train": {"rules": [{"scores": "similarity", "column": "similarity", "min": 2.0}]}}
    )
    shutil.rmtree(copy.view("train").folder)
    narrowed = Run(config)
    build_train_view(narrowed)
    with pytest.raises(UserError, match=r"no pairs are left .* after view train"):
        EmbeddingReader(narrowed.embeddings, narrowed.view("train"))


def test_artifact_without_manifest_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; run `make embeddings` first"):
        EmbeddingReader(Artifact(tmp_path / "nothing"))
