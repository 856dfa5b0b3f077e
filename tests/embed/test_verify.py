"""`python -m embed verify`: a whole cache is accepted, and each way in which it can part from its images is named."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.dataset.build import build_dataset
from data.pipeline.artifacts import Artifact, file_facts, publish_json, read_json
from data.pipeline.errors import UserError
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from embed.encoding.stage import build_embeddings
from embed.format import as_matrix, fixed_binary
from embed.verify import verify_cache
from tests.conftest import make_config, save_tiny_clip

ALL = 1000  # every row is encoded again
Change = Callable[[pa.Table], pa.Table]


def record_anew(artifact: Artifact, part: str, name: str) -> None:
    """Let receipt and manifest say that the changed file is as it should be."""
    facts = file_facts(artifact.folder / name)
    receipt, manifest = artifact.folder / "parts" / f"{part}.json", artifact.manifest_path
    changed, whole = read_json(receipt, "receipt"), read_json(manifest, "manifest")
    changed["files"][name] = facts
    next(p for p in whole["parts"] if p["name"] == part)["files"][name] = facts
    publish_json(receipt, changed)
    publish_json(manifest, whole)


def change(run: Run, alter: Change, part: str = "00000") -> list[str]:
    """What verify says of the cache after a part was altered and its digests made to fit."""
    path = run.embeddings.folder / f"{part}.parquet"
    pq.write_table(alter(pq.read_table(path)), path)
    record_anew(run.embeddings, part, path.name)
    return verify_cache(run, ALL)


def put(table: pa.Table, name: str, values: Any) -> pa.Table:
    position = table.schema.get_field_index(name)
    field = table.schema.field(name)
    return table.set_column(position, field, values if isinstance(values, pa.Array) else pa.array(values, field.type))


def vectors(table: pa.Table, side: str) -> np.ndarray:
    return as_matrix(table[f"{side}_embedding"], "<f2", 32).astype(np.float32)


def put_vectors(table: pa.Table, side: str, found: np.ndarray) -> pa.Table:
    return put(table, f"{side}_embedding", fixed_binary(found.astype("<f2")))


def rescored(table: pa.Table) -> pa.Table:
    image, text = (vectors(table, side) for side in ("image", "text"))
    return put(table, "clip_score", (image * text).sum(axis=1))


def reordered(side: str, order: Sequence[int]) -> Change:
    """Vectors of one side at other rows; rows 0 and 1 are of the first image, 2 and 3 of the second, and so on."""

    def alter(table: pa.Table) -> pa.Table:
        found = vectors(table, side)
        found[: len(order)] = found[list(order)]
        return put_vectors(table, side, found)

    return alter


def first_doubled(side: str) -> Change:
    def alter(table: pa.Table) -> pa.Table:
        found = vectors(table, side)
        found[:2] *= 2
        return rescored(put_vectors(table, side, found))

    return alter


def first(name: str, value: Any) -> Change:
    return lambda table: put(table, name, [value, *table[name].to_pylist()[1:]])


def test_a_whole_cache_is_accepted(own_run: Run) -> None:
    assert verify_cache(own_run) == verify_cache(own_run, ALL) == verify_cache(own_run, 0) == []
    with pytest.raises(UserError, match="--rows is -1; it is the number of pairs"):
        verify_cache(own_run, -1)


def far_apart(side: str) -> Change:
    """The vectors of the first image, or its captions, and of the one least like it stand at each other's place, scores too."""

    def alter(table: pa.Table) -> pa.Table:
        found = vectors(table, side)
        other = int((found[::2] @ found[0]).argmin()) * 2
        assert found[0] @ found[other] < 1 - 1e-4
        found[[0, 1, other, other + 1]] = found[[other, other + 1, 0, 1]]
        return rescored(put_vectors(table, side, found))

    return alter


ALTERED: dict[str, tuple[Change, str]] = {
    "swapped images": (reordered("image", (2, 3, 0, 1)), r"clip_score of row 0 \(000000000\) is not the cosine .* another pair's place"),
    "an image's rows apart": (reordered("image", (0, 2)), "image_embedding of row 1 differs from that of another pair of its image 000000000"),
    "swapped captions": (reordered("text", (1, 0)), "clip_score of row 0 .* is not the cosine"),
    # Nothing inside the part tells of these but the encoder.
    "swapped images, scores too": (
        far_apart("image"),
        r"re-encoding 60 rows: a stored image embedding is .* from the encoder's, more than 1e-05: the one of 0000\d+ in part 00000",
    ),
    "swapped captions, scores too": (
        far_apart("text"),
        "re-encoding 60 rows: a stored text embedding is .* from the encoder's",
    ),
    "length": (first_doubled("image"), r"image_embedding of row 0 \(000000000\) has length 2.000\d, not 1"),
    "length of a caption's": (first_doubled("text"), "text_embedding of row 0 .* has length"),
    "not a number": (
        lambda table: put_vectors(table, "text", np.full((20, 32), np.nan)), "text_embedding of row 0 .* has length nan",
    ),
    "norm": (first("image_norm", -1.0), r"image_norm of row 0 \(000000000\) is -1.0"),
    "caption": (first("caption", "a lie"), "row 0: the caption of 000000000 is not the shard's"),
    "caption hash": (first("caption_hash", b"0" * 16), "row 0: caption hash of 000000000 is not that of its caption"),
    "image hash": (first("image_hash", b"0" * 16), "image hash of 000000000 is not that of the stored image"),
    "later image hash": (
        lambda table: put(table, "image_hash", [*table["image_hash"].to_pylist()[:-1], b"0" * 16]), "image hash of 000000009 is not",
    ),
    "key": (first("key", "000000099"), r"row 0 is \('000000099', 0\), the shard has \('000000000', 0\): keys of cache and shards differ"),
    "order": (lambda table: table.take([1, 0, *range(2, 20)]), r"row 0 is \('000000000', 1\), the shard has \('000000000', 0\)"),
    "a row less": (lambda table: table.slice(0, 19), r"row 19 is no row, the shard has \('000000009', 1\)"),
    "split": (first("split", "nosuch"), "row 0: split of 000000000 is 'nosuch', the shard has '"),
    "size": (first("width", 7), "row 0: width of 000000000 is 7, the shard has 32"),
    "uid": (first("uid", "x"), "row 0: uid of 000000000 is 'x'"),
    "token ids": (first("token_ids", b"\1" * 64), "token ids of 000000000 are not those of its caption 'a"),
    "token count": (first("n_tokens", 1), "token ids of 000000000 are not those of its caption"),
    "column": (lambda table: table.drop_columns(["uid"]), r"lacks columns of the format \(uid string\); delete it"),
    "another CLIP": (
        lambda table: table.replace_schema_metadata({**table.schema.metadata, b"clip_identity": b"0"}),
        "was made with another CLIP than the rest of the cache",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ALTERED)
def test_a_part_that_is_not_of_its_images_is_named(own_run: Run, name: str) -> None:
    alter, message = ALTERED[name]
    problems = change(own_run, alter)
    assert any(match(message, p) for p in problems), problems
    assert all(str(own_run.folder) in p or p.startswith(("re-encoding", "token ids")) for p in problems)


def match(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None


def test_the_empty_caption_and_the_probes_are_compared(own_run: Run) -> None:
    def other_text(table: pa.Table) -> pa.Table:
        return put_vectors(table, "text", -vectors(table, "text"))

    problems = change(own_run, other_text, "null")
    assert len(problems) == 1 and "null.parquet: the empty caption's embedding is 2 (1 - cosine)" in problems[0]

    def other_machine(table: pa.Table) -> pa.Table:
        metadata = table.schema.metadata
        probes = np.array(json.loads(metadata[b"probes"]))
        probes[0] = -probes[0]
        return other_text(table).replace_schema_metadata({**metadata, b"probes": json.dumps(probes.tolist())})

    problems = change(own_run, other_machine, "null")
    assert len(problems) == 1 and "a probe embedding is 2 (1 - cosine) from this machine's encoder" in problems[0]


def test_a_flipped_byte_and_a_missing_part_are_named(own_run: Run) -> None:
    path = own_run.embeddings.folder / "00001.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (own_run.embeddings.folder / "00002.parquet").unlink()
    assert verify_cache(own_run) == [
        f"{path}: content differs from its recorded sha256", f"{own_run.embeddings.folder / '00002.parquet'}: missing",
    ]  # fmt: skip


def test_another_clip_is_named(own_run: Run, tmp_path: Path) -> None:
    save_tiny_clip(tmp_path / "tiny-clip", seed=1)
    (problem,) = verify_cache(own_run)
    assert match(r"was made with the CLIP tiny-clip \(\w{12}\), not with the one in use \(\w{12}\)", problem)


def test_a_replaced_and_a_missing_shard_are_named(own_run: Run) -> None:
    shards = own_run.dataset.folder / "shards"
    content = (shards / "00001.tar").read_bytes()
    (shards / "00000.tar").write_bytes(content)
    (shards / "00002.tar").unlink()
    problems = verify_cache(own_run)
    assert any("keys of cache and shards differ" in p for p in problems) and len(problems) == 2
    assert f"{shards / '00002.tar'} is missing; run `python -m data verify`, then `make dataset`" in problems


def test_parts_and_shards_belong_together_one_to_one(own_run: Run) -> None:
    manifest = own_run.embeddings.manifest()
    for name, message in (("dataset", "part 00002 has no shard in"), ("embeddings", "no part for shard 00002")):
        path = own_run.folder / name / "manifest.json"
        before = path.read_bytes()
        whole = json.loads(before)
        whole["parts"] = [part for part in whole["parts"] if part["name"] != "00002"]
        publish_json(path, whole)
        assert any(message in p for p in verify_cache(own_run))
        path.write_bytes(before)
    assert own_run.embeddings.manifest() == manifest


def test_images_of_unequal_sizes_are_encoded_again_too(tmp_path: Path) -> None:
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
    problems = change(run, lambda table: rescored(put_vectors(table, "image", -vectors(table, "image"))))
    assert len(problems) == 1 and "a stored image embedding is 2 (1 - cosine)" in problems[0]
