"""What the reader refuses: damaged and missing parts, views of other pairs, another CLIP's cache, nothing left to read."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.fake_cache import unit_vectors, write_cache, write_view
from data.pipeline.artifacts import Artifact
from data.pipeline.errors import UserError
from embed.reading.mapped import OpenPart
from embed.reading.reader import EmbeddingReader

DIM, CAPTIONS = 16, 3
SMALL = 4000  # bytes: nine rows a window


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """60 images of 3 captions in parts of 30, 0, 20 and 10 images, row groups of 5 rows."""
    images = [range(30), range(30, 30), range(30, 50), range(50, 60)]
    return write_cache(tmp_path_factory.mktemp("cache") / "e", images, DIM, CAPTIONS, 5, 12)


def read(reader: EmbeddingReader) -> None:
    reader.fetch(range(len(reader)))


def copied(cache: Artifact, tmp_path: Path, name: str = "00002") -> Path:
    shutil.copytree(cache.folder, tmp_path / "copy")
    return tmp_path / "copy" / f"{name}.parquet"


def test_a_missing_or_shortened_part_is_refused(cache: Artifact, tmp_path: Path) -> None:
    path = copied(cache, tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"00002.parquet has \d+ bytes, the manifest records \d+"):
        EmbeddingReader(Artifact(path.parent))
    path.unlink()
    with pytest.raises(UserError, match="00002.parquet is missing although the manifest lists it"):
        EmbeddingReader(Artifact(path.parent))


@pytest.mark.parametrize("limit", [SMALL, 10**9])
def test_a_flipped_byte_that_moves_a_vector_off_unit_length_is_named(
    cache: Artifact, tmp_path: Path, limit: int
) -> None:
    path = copied(cache, tmp_path)
    content = bytearray(path.read_bytes())
    row = unit_vectors(np.array([40]), DIM)[0].tobytes()
    at = content.index(row)
    content[at + 2 * int(np.abs(np.frombuffer(row, "<f2").astype(np.float32)).argmax()) + 1] ^= (
        0x40  # a bit of the exponent
    )
    path.write_bytes(content)
    with pytest.raises(
        UserError, match=r"image_embedding: the vector of 000000040 has length .*python -m embed verify"
    ):
        read(EmbeddingReader(Artifact(path.parent), memory_limit=limit))


@pytest.mark.parametrize("limit", [SMALL, 10**9])
def test_a_flipped_byte_that_arrow_notices_is_named(cache: Artifact, tmp_path: Path, limit: int) -> None:
    path = copied(cache, tmp_path)
    chunk = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"00002.parquet: row group 1 cannot be read .*the file is damaged"):
        read(EmbeddingReader(Artifact(path.parent), memory_limit=limit))


@pytest.mark.parametrize("limit", [SMALL, 10**9])
def test_a_view_of_other_pairs_is_refused(cache: Artifact, tmp_path: Path, limit: int) -> None:
    view = write_view(
        tmp_path / "view",
        write_cache(tmp_path / "o", [range(1, 31), range(0), range(30, 50), range(50, 60)], DIM, CAPTIONS),
        1,
    )
    with pytest.raises(
        UserError, match=r"pair \('000000000', 0\) of part 00000 is not in the view .*made from different datasets"
    ):
        read(EmbeddingReader(cache, view, memory_limit=limit))


def test_a_view_that_lists_more_pairs_in_another_order_is_matched_by_key(cache: Artifact, tmp_path: Path) -> None:
    more = write_cache(tmp_path / "o", [range(35), range(1), range(30, 50), range(50, 60)], DIM, CAPTIONS)
    view = write_view(tmp_path / "view", more, 2)
    path = view.folder / "00000.parquet"
    pq.write_table(pq.read_table(path).take(np.arange(105)[::-1]), path)
    expected = sorted((f"{i:09d}", k) for i in range(0, 60, 2) for k in range(CAPTIONS))
    batch = EmbeddingReader(cache, view).fetch(range(len(expected)))
    assert list(zip(batch.keys, batch.caption_index.tolist(), strict=True)) == expected


def test_another_clip_and_nothing_left_are_refused(cache: Artifact, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"was made with the CLIP fake/random .*not with the one in use \(111111111111\)"
    ):
        EmbeddingReader(cache, identity="1" * 64)
    there_are = r"is left in .*, whose splits are test \(36 pairs\), train \(108 pairs\), val \(36 pairs\)"
    for view in (None, write_view(tmp_path / "view", cache, 7)):
        with pytest.raises(UserError, match=rf"no pair of the split 'trian' {there_are}$"):
            EmbeddingReader(cache, view, split="trian")
    only_image_0 = write_view(tmp_path / "narrow", cache, 60)
    with pytest.raises(UserError, match=rf"no pair of the split 'val' {there_are}; a larger \[dataset.split\] val or"):
        EmbeddingReader(cache, only_image_0, "val")


def test_a_part_cut_short_while_it_is_read_is_named(cache: Artifact, tmp_path: Path) -> None:
    path = copied(cache, tmp_path)
    part, target = OpenPart(path), np.zeros((5, DIM), "<f2")
    part.copy_into(target, slice(0, 5), 0, "image_embedding", None)
    assert (target == unit_vectors(np.array([30, 30, 30, 31, 31]), DIM)).all()
    with path.open("r+b") as file:
        file.truncate(4)
    with pytest.raises(UserError, match="00002.parquet ends before its data: it was cut"):
        part._read(100, memoryview(bytearray(64)))


@pytest.mark.parametrize("limit", [SMALL, 10**9])
def test_vectors_are_named_by_one_name_or_several_and_no_others(cache: Artifact, limit: int) -> None:
    one: Any = EmbeddingReader(cache, vectors="image", memory_limit=limit)
    assert one.vectors == ("image",) and one.fetch([0]).image_embedding.shape == (1, DIM)
    for wrong in ("images", ("image", "txt"), ["image_embedding"], ""):
        with pytest.raises(UserError, match="vectors: there is no '.*'; a cache has 'image' and 'text'"):
            EmbeddingReader(cache, vectors=wrong, memory_limit=limit)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="opened without text vectors; add 'text' to `vectors`"):
        list(one.scan("text"))
    with pytest.raises(UserError, match="opened without image vectors"):
        EmbeddingReader(cache, vectors="text", memory_limit=limit).images()
    with pytest.raises(UserError, match="there is no 'picture'"):
        list(one.scan("picture"))


@pytest.mark.parametrize("limit", [SMALL, 10**9])
def test_rows_keys_and_columns_that_there_are_not_are_named(cache: Artifact, limit: int) -> None:
    reader = EmbeddingReader(cache, memory_limit=limit)
    for row in (-1, 180):
        for ask in (reader.fetch, reader.captions):
            with pytest.raises(UserError, match=f"there is no row {row}; .* from 0 to 179"):
                ask([0, row])
    with pytest.raises(UserError, match="has no column 'nope'; its columns are key, caption_index, uid, caption, "):
        reader.column("nope", [0])
    with pytest.raises(UserError, match="2 keys but 1 caption numbers"):
        reader.find(reader.keys[:2].tolist(), [0])
    with pytest.raises(UserError, match=r"^\('000000000', 9\) is not among"):
        reader.find(reader.keys[:1], np.array([9]))  # type: ignore[arg-type]
