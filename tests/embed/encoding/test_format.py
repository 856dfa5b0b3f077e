"""The cache's Parquet: what its metadata promises, vectors as raw bytes, and a zero-copy view of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.pipeline.errors import UserError
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from embed.clip.model import load_clip
from embed.encoding import stage as encoder
from embed.encoding.probes import PROBE_CAPTIONS, probe_embeddings
from embed.encoding.stage import build_embeddings
from embed.encoding.table import hash16
from embed.format import CacheFormat, as_fixed_size_list, as_matrix, fixed_binary, read_metadata, write_part
from embed.verify import verify_cache
from tests.conftest import save_tiny_clip


def test_metadata_names_the_clip_and_every_columns_form(made_run: Run) -> None:
    clip = load_clip(made_run)
    schema = pq.read_schema(made_run.embeddings.folder / "00000.parquet")
    facts = {k.decode(): v.decode() for k, v in schema.metadata.items()}
    assert facts == {
        "format": "unclip-embeddings-1", "dim": "32", "context_length": "32", "clip_identity": clip.identity, "clip_name": "tiny-clip",
        "preprocess": clip.preprocess_digest, "tokenizer": clip.tokenizer_digest, "precision": "fp32", "device": "cpu",
        "reduced_decode": "false",
    }  # fmt: skip
    assert not any(field.nullable for field in schema)
    vector = {b"dtype": b"float16", b"shape": b"[32]", b"normalized": b"true", b"byte_order": b"little"}
    for side in ("image", "text"):
        field = schema.field(f"{side}_embedding")
        assert field.type == pa.binary(64) and {k: field.metadata[k] for k in vector} == vector
    assert schema.field("token_ids").metadata[b"dtype"] == b"uint16" and schema.field("token_ids").type == pa.binary(64)


def test_the_empty_caption_and_the_probes_stand_apart(made_run: Run) -> None:
    clip, path = load_clip(made_run), made_run.embeddings.folder / "null.parquet"
    table = pq.read_table(path)
    assert table.column_names == ["caption", "caption_hash", "text_embedding", "text_norm", "token_ids", "n_tokens"]
    assert table["caption"].to_pylist() == [""] and table["caption_hash"].to_pylist() == [hash16(b"")]
    assert table["n_tokens"].to_pylist() == [2]
    probes = np.array(json.loads(read_metadata(str(path))["probes"]))
    assert probes.shape == (2 + len(PROBE_CAPTIONS), 32) and np.allclose(probes, probe_embeddings(clip), atol=1e-6)
    assert np.allclose(np.linalg.norm(probes, axis=1), 1, atol=1e-5)
    assert np.allclose(probes[2], as_matrix(table["text_embedding"], "<f2", 32)[0], atol=5e-4)


def test_lists_are_a_view_of_the_same_memory() -> None:
    matrix = np.random.default_rng(0).normal(size=(9, 4)).astype("<f2")
    column = fixed_binary(matrix)
    for start, stop in ((0, 9), (2, 7), (5, 5)):
        chunk = column[start:stop]
        lists = as_fixed_size_list(chunk, 4)
        assert lists.type == pa.list_(pa.float16(), 4) and len(lists) == stop - start
        if stop > start:
            assert lists.values.buffers()[1].address == column.buffers()[1].address
            assert np.array_equal(np.stack(lists.to_pylist()), matrix[start:stop])
    with pytest.raises(
        UserError, match=r"fixed_size_binary\[8\] does not hold 5 float16 each; expected fixed_size_binary\[10\]"
    ):
        as_fixed_size_list(column, 5)


def test_a_matrix_of_one_chunk_is_not_copied() -> None:
    matrix = np.arange(12, dtype="<f2").reshape(3, 4)
    column = fixed_binary(matrix)
    found = as_matrix(column.slice(1), "<f2", 4)
    assert np.array_equal(found, matrix[1:]) and np.shares_memory(found, matrix)
    both = pa.chunked_array([column.slice(2), column.slice(0, 1)])
    assert np.array_equal(as_matrix(both, "<f2", 4), matrix[[2, 0]])
    assert as_matrix(pa.chunked_array([], pa.binary(8)), "<f2", 4).shape == (0, 4)


def test_vectors_lie_in_the_file_as_they_are_in_memory(made_run: Run) -> None:
    """One plain page a row group: without compression or dictionary, so that a reader can map them."""
    path = made_run.embeddings.folder / "00000.parquet"
    metadata = pq.read_metadata(path)
    names = [metadata.schema.column(i).name for i in range(metadata.num_columns)]
    table = pq.read_table(path)
    for name in ("image_embedding", "text_embedding", "token_ids"):
        chunk = metadata.row_group(0).column(names.index(name))
        assert chunk.compression == "UNCOMPRESSED" and not chunk.has_dictionary_page
        assert b"".join(table[name].to_pylist()) in path.read_bytes()
    assert metadata.row_group(0).column(names.index("caption")).compression == "ZSTD"


def test_large_vocabularies_take_four_bytes_an_id(tmp_path: Path) -> None:
    small, large = (CacheFormat(2, 3, size, {}) for size in (2**16, 2**16 + 1))
    assert small.token_dtype == np.dtype("<u2") and large.token_dtype == np.dtype("<u4")
    assert large.schema.field("token_ids").type == pa.binary(12)
    empty = pa.Table.from_arrays([pa.array([], f.type) for f in large.schema], schema=large.schema)
    write_part(str(tmp_path / "0.parquet"), empty, 4)
    assert pq.read_table(tmp_path / "0.parquet").schema.equals(large.schema)


def test_files_of_another_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no Parquet")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read_metadata(str(tmp_path / "text"))
    with pytest.raises(UserError, match="nothing cannot be read as Parquet"):
        read_metadata(str(tmp_path / "nothing"))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other")
    with pytest.raises(UserError, match="is not an embedding cache of format unclip-embeddings-1; it says None"):
        read_metadata(str(tmp_path / "other"))


def test_a_worker_that_outlives_its_clip_loads_the_new_one(own_run: Run, tmp_path: Path) -> None:
    """Workers of a running scheduler see several builds."""
    for seed in (0, 1):
        save_tiny_clip(tmp_path / "tiny-clip", seed)
        shutil.rmtree(own_run.embeddings.folder)
        build_embeddings(own_run, InProcess())
    assert verify_cache(own_run) == []


def test_a_clip_that_changes_while_parts_are_made_is_refused(
    own_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the driver's look at it and the worker's."""
    shutil.rmtree(own_run.embeddings.folder)
    run_stage = encoder.run_stage

    def replaced(*arguments: object) -> object:
        save_tiny_clip(tmp_path / "tiny-clip", seed=2)
        encoder._cached_clip.cache_clear()
        return run_stage(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(encoder, "run_stage", replaced)
    with pytest.raises(
        UserError,
        match=r"the CLIP changed while its embeddings were made: \w{12} is not \w{12}; run `make embeddings` again",
    ):
        build_embeddings(own_run, InProcess())
    assert not own_run.embeddings.is_complete()
