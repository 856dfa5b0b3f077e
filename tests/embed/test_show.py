"""Nearest neighbours: exactly those of the whole matrix, of a view and a split where asked, drawn with the query."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.fake_cache import unit_vectors, write_cache, write_view
from data.dataset.shards import ShardReader
from data.pipeline.errors import UserError
from data.pipeline.run import Run
from embed import show as looking
from embed.__main__ import COMMANDS
from embed.clip.model import load_clip
from embed.reading.reader import EmbeddingReader
from embed.show import Query, caption_query, image_query, key_query, nearest
from tests.conftest import make_config


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """40 images of 3 captions in four parts, one of them empty; row groups of 4 rows, across which images go on."""
    run = Run.open(make_config(tmp_path_factory.mktemp("show")))
    images = [range(11), range(11, 11), range(11, 30), range(30, 40)]
    write_cache(run.embeddings.folder, images, 8, 3, 4, 12)
    write_view(run.view("some").folder, run.embeddings, 3)
    return run


@pytest.mark.parametrize(("view", "split"), [(None, None), ("some", None), (None, "val"), ("some", "train")])
@pytest.mark.parametrize("n", [1, 5, 100])
def test_the_nearest_are_those_of_the_whole_matrix(cache: Run, view: Any, split: Any, n: int) -> None:
    reader = EmbeddingReader(cache.embeddings, cache.view(view) if view else None, split)
    keys, vectors = reader.images()
    query = unit_vectors(np.array([7]), 8, 0.3)[0].astype(np.float32)
    cosines = np.asarray(vectors) @ query
    order = np.lexsort((np.array(keys), -cosines))[:n]
    found = nearest(cache, Query("q", query), n, view, split)
    assert [f.key for f in found] == [keys[i] for i in order]
    assert np.allclose([f.cosine for f in found], cosines[order], atol=1e-5)


def test_a_stored_sample_is_near_itself_and_left_out(cache: Run) -> None:
    query = key_query_without_picture(cache, "000000012")
    found = nearest(cache, query, 100)
    assert len(found) == 39 and "000000012" not in {f.key for f in found}
    again = nearest(cache, Query("q", query.vector), 1)
    assert again[0].key == "000000012" and again[0].cosine == pytest.approx(1, abs=1e-5)


def key_query_without_picture(run: Run, key: str) -> Query:
    vector = unit_vectors(np.array([int(key)]), 8)[0].astype(np.float32)
    return Query(key, vector / np.linalg.norm(vector), key)


def test_what_cannot_be_looked_for_is_one_line(cache: Run, made_run: Run, tmp_path: Path) -> None:
    clip = load_clip(made_run)
    with pytest.raises(UserError, match="no sample in .* has the key 'nosuch'; `python -m data show` prints some"):
        key_query(cache, "nosuch")
    with pytest.raises(UserError, match="the query has 3 components, the cache 8"):
        nearest(cache, Query("q", np.zeros(3, np.float32)), 3)
    with pytest.raises(UserError, match="no pair of the split 'nosuch' is left in .*, whose splits are test "):
        nearest(cache, Query("q", np.zeros(8, np.float32)), 3, None, "nosuch")
    with pytest.raises(UserError, match="--image: there is no file .*nothing.png"):
        image_query(clip, tmp_path / "nothing.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UserError, match="--image: .*text.png cannot be read as an image"):
        image_query(clip, tmp_path / "text.png")


def test_queries_are_the_clips_own_vectors(made_run: Run, tmp_path: Path) -> None:
    clip, reader = load_clip(made_run), ShardReader(made_run.dataset)
    key = reader.keys()[4]
    (tmp_path / "x.png").write_bytes(reader.image_bytes(key))
    by_file, by_key = image_query(clip, tmp_path / "x.png"), key_query(made_run, key)
    assert by_file.vector @ by_key.vector > 1 - 1e-6
    assert by_file.picture is not None and by_key.picture is not None and by_file.picture.size == (32, 32)
    assert nearest(made_run, by_file, 1)[0].key == key != nearest(made_run, by_key, 1)[0].key
    caption = caption_query(clip, "a red ring")
    assert np.allclose(caption.vector, clip.encode_text(clip.tokenize(["a red ring"]))[0].numpy(), atol=1e-6)


def test_a_turned_photograph_is_looked_for_upright(made_run: Run, tmp_path: Path) -> None:
    clip = load_clip(made_run)
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    a, b = (image_query(clip, tmp_path / name).vector for name in ("upright.png", "turned.png"))
    assert np.allclose(a, b, atol=1e-6)


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB")).astype(int)


def test_the_sheet_holds_the_query_the_images_and_their_captions(made_run: Run, tmp_path: Path) -> None:
    key = ShardReader(made_run.dataset).keys()[0]
    query = key_query(made_run, key)
    found = nearest(made_run, query, 6)
    shown = looking.read_neighbours(made_run, found, None)
    assert [s.key for s in shown] == [f.key for f in found]
    assert shown[0].note == f"cosine {found[0].cosine:.4f}" and len(shown[0].captions) == 2
    printed = looking.table(query, found, shown).splitlines()
    assert printed[0] == f"nearest to sample {key}" and len(printed) == 8
    assert f"{found[0].cosine:.4f}  {found[0].key}" in printed[2] and shown[0].captions[0] in printed[2]
    looking.write_neighbours(made_run, query, shown, tmp_path / "with.png")
    looking.write_neighbours(made_run, Query(query.title, query.vector), shown, tmp_path / "without.png")
    with_query, without = picture(tmp_path / "with.png"), picture(tmp_path / "without.png")
    above = len(with_query) - len(without)
    assert above >= looking.PICTURE and with_query.shape[1] == without.shape[1]
    # Below the query the sheets are one; above it the query's own pixels stand.
    assert (with_query[above + looking.HEADER :] == without[looking.HEADER :]).all()
    assert query.picture is not None
    corner = with_query[looking.HEADER, looking.MARGIN]
    assert np.abs(corner - np.asarray(query.picture)[0, 0]).max() < 8


def test_a_view_leaves_out_captions_too(own_run: Run) -> None:
    """Each neighbour is shown with the captions that the view keeps."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in sorted(own_run.view("train").folder.glob("*.parquet")):
        table = pq.read_table(path)
        keep = pa.array([i == 1 for i in table["caption_index"].to_pylist()])
        pq.write_table(table.set_column(table.schema.get_field_index("keep"), "keep", keep), path)
    found = nearest(own_run, key_query(own_run, ShardReader(own_run.dataset).keys()[0]), 3, "train")
    captions = [s.captions for s in looking.read_neighbours(own_run, found, "train")]
    meta = ShardReader(own_run.dataset).meta
    assert captions == [(meta(f.key)["captions"][1],) for f in found]


def test_the_commands_are_those_of_the_docs() -> None:
    assert [command.name for command in COMMANDS] == ["build", "scores", "verify", "show", "export"]
