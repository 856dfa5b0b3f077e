"""What the reader refuses: damaged and missing parts, views of other pairs, another CLIP's cache, nothing left to read."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.fake_cache import unit_vectors, write_cache, write_view
from data.artifacts import Artifact
from data.errors import UserError
from embed.mapped import OpenPart
from embed.reader import EmbeddingReader

DIM, CAPTIONS = 16, 3
SMALL = 4000  # bytes: nine rows a window


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """60 images of 3 captions in parts of 30, 0, 20 and 10 images, row groups of 5 rows."""
    images = [range(30), range(30, 30), range(30, 50), range(50, 60)]
    return write_cache(tmp_path_factory.mktemp("cache") / "e", images, DIM, CAPTIONS, 5, 12)


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
        list(EmbeddingReader(Artifact(path.parent), memory_limit=limit).batches(100, 0))


@pytest.mark.parametrize("limit", [SMALL, 10**9])
def test_a_flipped_byte_that_arrow_notices_is_named(cache: Artifact, tmp_path: Path, limit: int) -> None:
    path = copied(cache, tmp_path)
    chunk = pq.read_metadata(path).row_group(1).column(0)
    content = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"00002.parquet: row group 1 cannot be read .*the file is damaged"):
        list(EmbeddingReader(Artifact(path.parent), memory_limit=limit).batches(100, 0))


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
        list(EmbeddingReader(cache, view, memory_limit=limit).batches(100, 0))


def test_a_view_that_lists_more_pairs_in_another_order_is_matched_by_key(cache: Artifact, tmp_path: Path) -> None:
    more = write_cache(tmp_path / "o", [range(35), range(1), range(30, 50), range(50, 60)], DIM, CAPTIONS)
    view = write_view(tmp_path / "view", more, 2)
    path = view.folder / "00000.parquet"
    pq.write_table(pq.read_table(path).take(np.arange(105)[::-1]), path)
    expected = sorted((f"{i:09d}", k) for i in range(0, 60, 2) for k in range(CAPTIONS))
    batch = EmbeddingReader(cache, view).fetch(range(len(expected)))
    assert list(zip(batch.keys, batch.caption_index.tolist(), strict=True)) == expected


def test_another_clip_and_nothing_left_are_refused(cache: Artifact) -> None:
    with pytest.raises(
        UserError, match=r"was made with the CLIP fake/random .*not with the one in use \(111111111111\)"
    ):
        EmbeddingReader(cache, identity="1" * 64)
    with pytest.raises(UserError, match="no pair of the split 'nosuch' is left"):
        EmbeddingReader(cache, split="nosuch")


def test_a_part_cut_short_while_it_is_read_is_named(cache: Artifact, tmp_path: Path) -> None:
    path = copied(cache, tmp_path)
    part, room = OpenPart(path), np.zeros((5, DIM), "<f2")
    part.copy_into(room, slice(0, 5), 0, "image_embedding", None)
    assert (room == unit_vectors(np.array([30, 30, 30, 31, 31]), DIM)).all()
    with path.open("r+b") as file:
        file.truncate(4)
    with pytest.raises(UserError, match="00002.parquet ends before its data: it was cut"):
        part._read(100, memoryview(bytearray(64)))
