"""A cache for other tools: list columns for pandas and DuckDB, or npy files with metadata as clip-retrieval's users expect.

    list   00000.parquet ...       every column; vectors and token ids as fixed-size lists
    npy    img_emb/img_emb_0.npy   text_emb/text_emb_0.npy   metadata/metadata_0.parquet: row i of one is row i of the others

One part of the cache is one file, and a row group is in memory at a time. `_export.json` says what was exported (readers of Parquet
folders pass over names that begin so).
"""

import os
import shutil
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.pipeline.artifacts import fsync_path, publish_json, sha256_file
from data.pipeline.errors import Code, UserError
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from embed.format import as_fixed_size_list
from embed.reading.mapped import OpenPart
from embed.reading.parts import CacheParts, Unit

Format = Literal["list", "npy"]
DTypes = Literal["float16", "float32"]
DEFAULT_DTYPE: dict[str, DTypes] = {"list": "float32", "npy": "float16"}
SIDES = {"image_embedding": "img_emb", "text_embedding": "text_emb"}
RECORDED = ("format", "clip_name", "clip_identity", "precision", "dim")  # what an export says of its cache
METADATA = ["key", "caption_index", "caption", "uid", "width", "height", "split", "clip_score"]


def export_cache(
    run: Run, out: Path, form: Format, dtype: DTypes | None = None, view: str | None = None, split: str | None = None
) -> int:
    """Write the cache's pairs (those of a view and a split, where named) to the folder `out`, which appears when it is whole.

    Returns the number of rows. Raises UserError for a folder that has something in it, a view that is stale, or a selection that is
    empty.
    """
    parts = CacheParts(run.embeddings, Lineage(run).require(f"views/{view}") if view else None, split, None)
    if not parts.units:
        raise UserError(
            f"no pair of {parts.folder} is left in view {view or '(none)'} and split {split or '(any)'}: nothing to export",
            Code.EMPTY,
        )
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UserError(f"--out: {out} is not an empty folder; name a new one, or delete it")
    require_place(out)
    _require_recorded_bytes(run, parts)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed export left
    partial.mkdir()
    chosen: DTypes = dtype or DEFAULT_DTYPE[form]
    rows = int(parts.counts.sum())
    asked = {"layout": form, "dtype": chosen, "view": view, "split": split, "rows": rows}
    try:
        (_write_lists if form == "list" else _write_npy)(parts, partial, chosen)
        known = {name: parts.metadata[name] for name in RECORDED if name in parts.metadata}
        publish_json(partial / "_export.json", known | asked | {"embeddings": run.embeddings.digest()})
        for path in partial.rglob("*"):
            fsync_path(path)
        if out.exists():
            out.rmdir()
        os.replace(partial, out)
        fsync_path(out.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return rows


def require_place(out: Path) -> None:
    """Raise UserError where `out` could only be made inside a file."""
    above = next(path for path in out.absolute().parents if path.exists())
    if not above.is_dir():
        raise UserError(f"--out: {above} is a file, so {out} cannot be made in it; name another place")


def _require_recorded_bytes(run: Run, parts: CacheParts) -> None:
    """Raise UserError when a part that is exported is not, byte for byte, what the cache's receipts record."""
    recorded = {receipt.name: receipt.files for receipt in run.embeddings.receipts()}
    for number in sorted({unit.part for unit in parts.units}):
        path = parts.parts[number].path
        if sha256_file(path) != recorded[parts.parts[number].name][path.name]["sha256"]:
            raise UserError(
                f"{path}: its content differs from its recorded sha256; nothing is exported. Run `python -m embed verify`, then delete "
                "the file and run `make embeddings`",
                Code.DAMAGED,
            )


def _tables(parts: CacheParts, columns: list[str]) -> Iterator[tuple[str, Iterator[tuple[Unit, pa.Table]]]]:
    """For each part that has rows: its name, and the wanted columns of its row groups without the rows left out."""

    def whole(unit: Unit, part: OpenPart, keep: Any) -> tuple[Unit, pa.Table]:
        table = part.columns(unit.group, columns)
        return unit, table if keep is None else table.filter(pa.array(keep))

    walked = (whole(*each) for each in parts.walk(parts.units))
    for number, group in groupby(walked, key=lambda each: each[0].part):
        yield parts.parts[number].name, group


def _write_lists(parts: CacheParts, folder: Path, dtype: DTypes) -> None:
    names = pq.read_schema(parts.parts[parts.units[0].part].path).names
    for name, tables in _tables(parts, names):
        writer: pq.ParquetWriter | None = None
        try:
            for _, table in tables:
                listed = _as_lists(table, parts, dtype)
                if writer is None:
                    writer = pq.ParquetWriter(
                        folder / f"{name}.parquet", listed.schema, compression="zstd",
                        use_dictionary=["uid", "split"], write_statistics=["key", "clip_score"],
                    )  # fmt: skip
                writer.write_table(listed, row_group_size=len(listed))
        finally:
            if writer is not None:
                writer.close()


def _as_lists(table: pa.Table, parts: CacheParts, dtype: DTypes) -> pa.Table:
    for position, name in enumerate(table.column_names):
        if name in SIDES:
            kind = pa.list_(pa.field("element", pa.type_for_alias(dtype), nullable=False), parts.dim)
            lists = [_cast(as_fixed_size_list(chunk, parts.dim).values, dtype) for chunk in table[name].chunks]
        elif name == "token_ids":
            kind = pa.list_(
                pa.field("element", pa.type_for_alias(parts.token_dtype.name), nullable=False), parts.context_length
            )
            lists = [_numbers(chunk, parts.token_dtype, parts.context_length) for chunk in table[name].chunks]
        else:
            continue
        arrays = [pa.FixedSizeListArray.from_arrays(values, type=kind) for values in lists]
        field = pa.field(name, kind, nullable=False)
        table = table.set_column(position, field, pa.chunked_array(arrays, kind))
    return table


def _cast(values: pa.Array, dtype: DTypes) -> pa.Array:
    return values if dtype == "float16" else pa.array(values.to_numpy().astype(np.float32))


def _numbers(chunk: pa.FixedSizeBinaryArray, dtype: np.dtype, width: int) -> pa.Array:
    buffers = [None, chunk.buffers()[1]]
    return pa.Array.from_buffers(
        pa.type_for_alias(dtype.name), len(chunk) * width, buffers, offset=chunk.offset * width
    )


def _write_npy(parts: CacheParts, folder: Path, dtype: DTypes) -> None:
    """Names have as many digits as the last one needs, so that the order of names is the order of parts."""
    for name in (*SIDES.values(), "metadata"):
        (folder / name).mkdir()
    numbers = sorted({unit.part for unit in parts.units})
    digits = len(str(len(numbers) - 1))
    for number, (_, tables) in enumerate(_tables(parts, [*SIDES, *METADATA])):
        rows = sum(unit.kept for unit in parts.units if unit.part == numbers[number])
        label = f"{number:0{digits}d}"
        targets = {
            name: np.lib.format.open_memmap(
                folder / side / f"{side}_{label}.npy", mode="w+", dtype=np.dtype(dtype), shape=(rows, parts.dim)
            )
            for name, side in SIDES.items()
        }
        metadata, start = [], 0
        for _, table in tables:
            for name, target in targets.items():
                at = start
                for chunk in table[name].chunks:
                    values = as_fixed_size_list(chunk, parts.dim).values.to_numpy()
                    target[at : at + len(chunk)] = values.reshape(-1, parts.dim)
                    at += len(chunk)
            start += len(table)
            metadata.append(table.select(METADATA))
        for target in targets.values():
            target.flush()
        whole = pa.concat_tables(metadata).replace_schema_metadata(None)
        # The name by which clip-retrieval finds an image in its tar.
        whole = whole.add_column(0, pa.field("image_path", pa.string(), nullable=False), whole["key"])
        pq.write_table(whole, folder / "metadata" / f"metadata_{label}.parquet")
