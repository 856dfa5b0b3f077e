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

from data.dataset.build import build_dataset
from data.dataset.shards import ShardReader
from data.pipeline.artifacts import Artifact, file_facts, publish_json, read_json
from data.pipeline.errors import UserError
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.pipeline.settings import ClusterSettings
from data.views.build import build_train_view
from embed.clip.model import load_clip, load_clip_folder
from embed.encoding.devices import known_device
from embed.encoding.stage import build_embeddings
from embed.format import as_matrix
from embed.reading.reader import EmbeddingReader
from embed.settings import EmbeddingsSettings
from tests.conftest import exit_code_with_fault, make_config, save_tiny_clip, tree_bytes
from tests.embed.conftest import VIEWS


def test_embeddings_equal_open_clips_own(made_run: Run) -> None:
    clip = load_clip(made_run)
    reader = EmbeddingReader(made_run.embeddings, identity=clip.identity)
    shards = ShardReader(made_run.dataset)
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


def test_every_column_is_what_it_says(made_run: Run) -> None:
    table = pq.read_table(made_run.embeddings.folder / "00001.parquet")
    assert table.column_names == [
        "key", "caption_index", "uid", "caption", "caption_hash", "image_hash", "image_embedding", "image_norm", "text_embedding",
        "text_norm", "token_ids", "n_tokens", "clip_score", "width", "height", "split",
    ]  # fmt: skip
    pairs = list(zip(table["key"].to_pylist(), table["caption_index"].to_pylist(), strict=True))
    assert pairs == sorted(set(pairs)) and len(pairs) == 20
    vectors = [as_matrix(table[name], "<f2", 32).astype(np.float32) for name in ("image_embedding", "text_embedding")]
    assert np.allclose((vectors[0] * vectors[1]).sum(axis=1), table["clip_score"].to_numpy(), atol=1e-6)
    assert np.allclose(np.linalg.norm(vectors[0], axis=1), 1, atol=1e-3)


def test_workers_and_rerun_do_not_change_a_byte(made_run: Run, tmp_path: Path, executor: Any) -> None:
    save_tiny_clip(tmp_path / "tiny-clip")
    other = Run.open(make_config(tmp_path))
    build_dataset(other, InProcess())
    build_embeddings(other, executor)
    assert tree_bytes(other.embeddings.folder) == tree_bytes(made_run.embeddings.folder)


def embed(folder: Path) -> None:
    build_embeddings(Run.open(make_config(folder, views=VIEWS)), InProcess())


@pytest.mark.parametrize(
    "fault",
    ["plan", "attempt@null", "attempt@00001", "part@00000", "log@00001", "receipt@null", "receipt@00002", "manifest"],
)
def test_sigkill_then_the_same_command_gives_the_same_bytes(
    own_run: Run, made_run: Run, tmp_path: Path, fault: str
) -> None:
    shutil.rmtree(own_run.embeddings.folder)
    assert exit_code_with_fault(fault, embed, tmp_path) == -signal.SIGKILL
    assert not own_run.embeddings.is_complete()
    embed(tmp_path)
    assert tree_bytes(own_run.embeddings.folder) == tree_bytes(made_run.embeddings.folder)


def test_a_cache_of_another_clip_is_refused(own_run: Run, tmp_path: Path) -> None:
    other = load_clip_folder(save_tiny_clip(tmp_path / "other", seed=1))
    with pytest.raises(UserError, match=r"was made with the CLIP tiny-clip .*not with the one in use"):
        EmbeddingReader(own_run.embeddings, identity=other.identity)
    save_tiny_clip(tmp_path / "tiny-clip", seed=1)
    with pytest.raises(UserError, match=r"was made with clip.identity = .* delete .*embeddings to start over"):
        build_embeddings(own_run, InProcess())


def test_a_changed_shard_is_embedded_again_and_only_that(own_run: Run) -> None:
    log = own_run.logs / "embeddings.jsonl"
    before = log.read_text().count("\n")
    receipt = own_run.dataset.folder / "parts" / "00001.json"
    manifest = own_run.dataset.manifest_path
    path = own_run.dataset.folder / "shards" / "00001.tar"
    path.write_bytes(path.read_bytes() + b"\0" * 512)  # a tar may end in more zero blocks
    facts = file_facts(path)
    changed = read_json(receipt, "receipt")
    changed["files"]["shards/00001.tar"] = facts
    publish_json(receipt, changed)
    whole = read_json(manifest, "manifest")
    whole["parts"][1]["files"]["shards/00001.tar"] = facts
    publish_json(manifest, whole)
    build_embeddings(own_run, InProcess())
    assert [line for line in log.read_text().splitlines()[before:] if '"part": "00001"' in line]
    assert log.read_text().count("\n") == before + 1


def test_missing_part_foreign_view_and_empty_selection_are_refused(own_run: Run, made_run: Run) -> None:
    with pytest.raises(UserError, match="no pair of the split 'nosuch' is left"):
        EmbeddingReader(own_run.embeddings, split="nosuch")
    view = own_run.view("base")
    path = view.folder / "00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(UserError, match=r"is not in the view .*made from different datasets"):
        EmbeddingReader(own_run.embeddings, view)
    (own_run.embeddings.folder / "00001.parquet").unlink()
    with pytest.raises(UserError, match=r"00001.parquet is missing although the manifest lists it"):
        EmbeddingReader(own_run.embeddings)


def test_reader_order_is_a_seeded_permutation(made_run: Run) -> None:
    reader = EmbeddingReader(made_run.embeddings, made_run.view("train"), "train")
    assert sorted(reader.order(0, 0)) == list(range(len(reader)))
    assert (reader.order(0, 0) != reader.order(0, 1)).any() and (reader.order(0, 0) != reader.order(1, 0)).any()


def test_images_counts_each_image_once(made_run: Run) -> None:
    reader = EmbeddingReader(made_run.embeddings)
    keys, embeddings = reader.images()
    assert len(keys) == 30 == len(set(keys)) and embeddings.shape == (30, 32)
    row = int(np.flatnonzero(reader.keys == keys[7])[1])
    assert torch.equal(reader.fetch([row]).image_embedding[0], embeddings[7])


def test_null_caption_is_the_empty_caption(made_run: Run) -> None:
    clip = load_clip(made_run)
    null = EmbeddingReader(made_run.embeddings).null
    assert (clip.encode_text(clip.tokenize([""]))[0] - null.text_embedding).abs().max() < 5e-4
    assert torch.equal(null.token_ids, clip.tokenize([""])[0])


def test_similarity_is_the_cosine(made_run: Run) -> None:
    scores = pa.concat_tables(
        [pq.read_table(made_run.scores("similarity").folder / f"0000{i}.parquet") for i in range(3)]
    )
    batch = EmbeddingReader(made_run.embeddings).fetch(np.arange(60))
    assert scores["key"].to_pylist() == batch.keys
    assert np.allclose(
        scores["similarity"].to_numpy(), (batch.image_embedding * batch.text_embedding).sum(1), atol=1e-3
    )


def test_empty_view_is_one_line(own_run: Run) -> None:
    config = make_config(
        own_run.folder.parent,
        views={"train": {"rules": [{"scores": "similarity", "column": "similarity", "min": 2.0}]}},
    )
    shutil.rmtree(own_run.view("train").folder)
    narrowed = Run(config)
    build_train_view(narrowed, InProcess())
    with pytest.raises(UserError, match=r"no pairs are left .* after view train"):
        EmbeddingReader(narrowed.embeddings, narrowed.view("train"))


def test_artifact_without_manifest_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; run `make embeddings` first"):
        EmbeddingReader(Artifact(tmp_path / "nothing"))


def test_lost_statistics_are_made_again(own_run: Run, made_run: Run) -> None:
    path = own_run.embeddings.folder / "statistics.json"
    for damage in (Path.unlink, lambda path: path.write_text("{")):
        damage(path)
        build_embeddings(own_run, InProcess())
        assert tree_bytes(own_run.embeddings.folder) == tree_bytes(made_run.embeddings.folder)


def test_a_copied_clip_is_the_same_clip(own_run: Run, made_run: Run, tmp_path: Path) -> None:
    """Its folder neither makes another config nor changes a byte of the parts that are still to be made."""
    Run.open(own_run.config)
    shutil.move(tmp_path / "tiny-clip", tmp_path / "elsewhere")
    (own_run.embeddings.folder / "00001.parquet").unlink()
    moved = Run.open(
        make_config(tmp_path, views=VIEWS, clip={"source": "checkpoint", "path": str(tmp_path / "elsewhere")})
    )
    build_embeddings(moved, InProcess())
    assert tree_bytes(moved.embeddings.folder) == tree_bytes(made_run.embeddings.folder)
    save_tiny_clip(tmp_path / "elsewhere", seed=1)
    with pytest.raises(UserError, match="was made with clip.identity = "):
        build_embeddings(moved, InProcess())


def test_auto_is_the_device_it_comes_to(own_run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert own_run.embeddings.settings()["device"] == "cpu"
    Run.open(own_run.config)
    before = own_run.embeddings.manifest_path.stat().st_mtime_ns
    build_embeddings(Run.open(make_config(tmp_path, views=VIEWS, embeddings={"device": "cpu"})), InProcess())
    assert own_run.embeddings.manifest_path.stat().st_mtime_ns == before
    settings = EmbeddingsSettings()
    monkeypatch.setattr("embed.encoding.devices.gpus", lambda device: ["one"])
    assert known_device(settings, ClusterSettings()) == "cuda"
    assert known_device(settings, ClusterSettings(address="tcp://there:1")) == "auto"
    assert known_device(EmbeddingsSettings(device="cpu"), ClusterSettings()) == "cpu"
    with pytest.raises(UserError, match="was made with device = 'cpu', this config says 'cuda'"):
        build_embeddings(own_run, InProcess())
