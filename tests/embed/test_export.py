"""Exports: whole, keyed, and readable by the tools that people hold them with."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.fake_cache import write_cache, write_view
from data.pipeline.errors import UserError
from data.pipeline.run import Run
from embed import export
from embed.export import export_cache
from embed.format import as_matrix
from embed.reading.reader import EmbeddingReader
from tests.conftest import make_config, tree_bytes

IMAGES: list[range] = [range(7), range(7, 7), range(7, 20)]
ROWS = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """20 images of 2 captions in parts of 7, 0 and 13 images, row groups of 5 rows."""
    run = Run.open(make_config(tmp_path_factory.mktemp("export")))
    write_cache(run.embeddings.folder, IMAGES, 8, 2, 5, 12)
    return run


def whole(run: Run) -> Any:
    return EmbeddingReader(run.embeddings).fetch(np.arange(ROWS))


@pytest.mark.parametrize(("dtype", "stored"), [(None, np.float32), ("float32", np.float32), ("float16", np.float16)])
def test_lists_hold_every_column(run: Run, tmp_path: Path, dtype: Any, stored: Any) -> None:
    assert export_cache(run, tmp_path / "out", "list", dtype) == ROWS
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["00000.parquet", "00002.parquet", "_export.json"]
    table, batch = pq.read_table(tmp_path / "out"), whole(run)
    cache = pq.read_table(run.embeddings.folder / "00002.parquet")
    assert table.column_names == cache.column_names
    rest = [name for name in table.column_names if not name.endswith("_embedding") and name != "token_ids"]
    assert table.slice(14).select(rest).equals(cache.select(rest).replace_schema_metadata(None))
    frame = table.to_pandas()
    assert frame["key"].tolist() == batch.keys and frame["caption_index"].tolist() == batch.caption_index.tolist()
    for name in ("image_embedding", "text_embedding"):
        found = np.stack(frame[name])
        exact = np.concatenate(
            [as_matrix(pq.read_table(run.embeddings.folder / f"0000{i}.parquet")[name], "<f2", 8) for i in (0, 2)]
        )
        assert found.dtype == stored and np.array_equal(found, exact.astype(stored))
    assert np.array_equal(np.stack(frame["token_ids"]), batch.token_ids.numpy())


def test_npy_rows_are_the_metadatas(run: Run, tmp_path: Path) -> None:
    assert export_cache(run, tmp_path / "out", "npy") == ROWS
    folders = {
        "img_emb": ["img_emb_0.npy", "img_emb_1.npy"], "text_emb": ["text_emb_0.npy", "text_emb_1.npy"],
        "metadata": ["metadata_0.parquet", "metadata_1.parquet"],
    }  # fmt: skip
    for folder, names in folders.items():
        assert sorted(p.name for p in (tmp_path / "out" / folder).iterdir()) == names
    batch = whole(run)
    frame = pd.concat([pd.read_parquet(p) for p in sorted((tmp_path / "out/metadata").iterdir())])
    assert frame["image_path"].tolist() == frame["key"].tolist() == batch.keys
    assert frame["caption_index"].tolist() == batch.caption_index.tolist()
    for folder, expected in (("img_emb", batch.image_embedding), ("text_emb", batch.text_embedding)):
        found = np.concatenate([np.load(p) for p in sorted((tmp_path / "out" / folder).iterdir())])
        assert found.dtype == np.float16 and np.abs(found - expected.numpy()).max() < 1e-3


def test_npy_names_sort_as_their_numbers(tmp_path: Path) -> None:
    run = Run.open(make_config(tmp_path))
    write_cache(run.embeddings.folder, [range(i, i + 1) for i in range(11)], 8, 1, 5, 12)
    export_cache(run, tmp_path / "out", "npy", "float32")
    names = sorted(p.name for p in (tmp_path / "out/img_emb").iterdir())
    assert names == [f"img_emb_{i:02d}.npy" for i in range(11)]
    keys = [pd.read_parquet(p)["key"][0] for p in sorted((tmp_path / "out/metadata").iterdir())]
    assert keys == sorted(keys) and np.load(tmp_path / "out/img_emb" / names[3]).dtype == np.float32


@pytest.mark.parametrize("form", ["list", "npy"])
def test_a_view_and_a_split_narrow_it(tmp_path: Path, form: Any) -> None:
    run = Run.open(make_config(tmp_path))
    write_cache(run.embeddings.folder, IMAGES, 8, 2, 5, 12)
    write_view(run.view("some").folder, run.embeddings, 3)
    kept = EmbeddingReader(run.embeddings, run.view("some"), "train")
    assert export_cache(run, tmp_path / "out", form, None, "some", "train") == len(kept)
    names = ["key", "caption_index"]
    files = sorted((tmp_path / "out" / ("metadata" if form == "npy" else "")).glob("*.parquet"))
    frame = pd.concat([pd.read_parquet(p, columns=names) for p in files])
    found = kept.fetch(np.arange(len(kept)))
    assert 0 < len(kept) < ROWS and frame["key"].tolist() == found.keys
    assert frame["caption_index"].tolist() == found.caption_index.tolist()


def test_embedding_reader_reads_the_npy_export(run: Run, tmp_path: Path) -> None:
    """The library of clip-retrieval's users, vectors and metadata together."""
    from embedding_reader import EmbeddingReader as Theirs

    export_cache(run, tmp_path / "out", "npy")
    reader = Theirs(
        str(tmp_path / "out/img_emb"), file_format="parquet_npy", metadata_folder=str(tmp_path / "out/metadata"),
        meta_columns=["image_path", "caption"],
    )  # fmt: skip
    assert (reader.count, reader.dimension) == (ROWS, 8)
    (vectors, meta), *more = list(reader(batch_size=ROWS))
    batch = whole(run)
    assert not more and meta["image_path"].tolist() == batch.keys
    assert np.abs(vectors - batch.image_embedding.numpy()).max() < 1e-3


def test_duckdb_reads_the_list_export(run: Run, tmp_path: Path) -> None:
    import duckdb

    export_cache(run, tmp_path / "out", "list")
    batch = whole(run)
    found = duckdb.sql(
        f"select key, array_cosine_similarity(image_embedding::float[8], text_embedding::float[8]) as c, clip_score "
        f"from '{tmp_path}/out/*.parquet' order by key, caption_index"
    ).fetchall()
    expected = (batch.image_embedding * batch.text_embedding).sum(1).numpy()
    assert [row[0] for row in found] == batch.keys
    assert np.allclose([row[1] for row in found], expected, atol=1e-5)
    assert np.allclose([row[2] for row in found], expected, atol=1e-3)


def test_torch_reads_the_npy_export(run: Run, tmp_path: Path) -> None:
    export_cache(run, tmp_path / "out", "npy", "float32")
    vectors = torch.from_numpy(np.load(tmp_path / "out/text_emb/text_emb_0.npy"))
    assert vectors.shape == (14, 8) and torch.allclose(vectors.norm(dim=1), torch.ones(14), atol=1e-3)


def test_equal_caches_give_equal_bytes(run: Run, tmp_path: Path) -> None:
    for form in ("list", "npy"):
        trees = []
        for name in ("a", "b"):
            export_cache(run, tmp_path / form / name, form)  # type: ignore[arg-type]
            trees.append(tree_bytes(tmp_path / form / name))
        assert trees[0] == trees[1] and len(trees[0]) > 2


def test_an_export_appears_whole_or_not_at_all(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(export, "publish_json", full_disk)
        with pytest.raises(OSError, match="No space left"):
            export_cache(run, out, "list")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".out.partial").mkdir()  # what a kill leaves
    (tmp_path / ".out.partial" / "rest").write_text("x")
    out.mkdir()
    assert export_cache(run, out, "list") == ROWS
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and not (out / "rest").exists()


def test_what_cannot_be_exported_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("mine")
    os.symlink(tmp_path, tmp_path / "link")
    for name in ("taken", "taken/file", "link"):
        with pytest.raises(UserError, match=rf"--out: .*{name} is not an empty folder; name a new one"):
            export_cache(run, tmp_path / name, "npy")
    assert (tmp_path / "taken/file").read_text() == "mine"
    with pytest.raises(UserError, match="no pair of the split 'nosuch' is left in .*, whose splits are "):
        export_cache(run, tmp_path / "out", "npy", split="nosuch")
    with pytest.raises(UserError, match="views/nosuch does not exist"):
        export_cache(run, tmp_path / "out", "npy", view="nosuch")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["list", "npy"])
def test_a_flipped_byte_is_not_exported(tmp_path: Path, form: Any) -> None:
    run = Run.open(make_config(tmp_path))
    write_cache(run.embeddings.folder, IMAGES, 8, 2, 5, 12)
    path = run.embeddings.folder / "00002.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        UserError, match="00002.parquet: its content differs from its recorded sha256; nothing is exported"
    ):
        export_cache(run, tmp_path / "exports" / "out", form)
    assert not (tmp_path / "exports").exists()


def test_a_place_inside_a_file_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for inside in ("file/x", "file/x/y"):
        with pytest.raises(UserError, match=r"--out: \S+/file is a file, so \S+ cannot be made in it"):
            export_cache(run, tmp_path / inside, "npy")
