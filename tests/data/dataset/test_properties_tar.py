"""Shards give back what was written into them, whatever it was, and equal samples give equal bytes."""

import io
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.dataset.shards import IMAGE_SUFFIXES, Sample, ShardReader, ShardWriter, read_shard
from data.pipeline.artifacts import Artifact, canonical_json, publish_json
from data.pipeline.errors import UserError

MANY = settings(deadline=None, max_examples=60, derandomize=True, database=None)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)  # what UTF-8 can hold
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
METAS = st.builds(
    lambda captions, rest: {**rest, "captions": captions},
    st.lists(TEXT, min_size=1, max_size=3),
    st.dictionaries(TEXT, JSON, max_size=3),
)
# Beside a block's 512 bytes lie the sizes at which padding goes wrong.
IMAGES = st.one_of(
    st.binary(max_size=40), st.integers(0, 1100).map(lambda size: b"\0" * size), st.just(b"PK\3\4" * 256)
)
KEYS = st.integers(0, 10**9 - 1).map("{:09d}".format)
SAMPLES = st.lists(
    st.builds(Sample, KEYS, IMAGES, st.sampled_from(IMAGE_SUFFIXES), METAS),
    max_size=5,
    unique_by=lambda sample: sample.key,
).map(lambda samples: sorted(samples, key=lambda sample: sample.key))


def write(path: Path, samples: Sequence[Sample]) -> bytes:
    with ShardWriter(path) as writer:
        for sample in samples:
            writer.write(sample)
    return path.read_bytes()


def dataset_of(folder: Path, samples: Sequence[Sample], dropped: Sequence[str]) -> Artifact:
    """As much of a dataset as ShardReader reads."""
    write(folder / "shards" / "00000.tar", samples)
    keys = [*(sample.key for sample in samples), *dropped]
    reasons = [None] * len(samples) + ["http_4xx"] * len(dropped)
    (folder / "ledger").mkdir()
    pq.write_table(
        pa.table({"key": pa.array(keys, pa.string()), "reason": pa.array(reasons, pa.string())}),
        folder / "ledger/00000.parquet",
    )
    part = {"name": "00000", "fingerprint": "", "files": {}, "counts": {}}
    publish_json(folder / "manifest.json", {"parts": [part]})
    return Artifact(folder)


@MANY
@given(SAMPLES)
def test_what_is_written_is_read(samples: list[Sample]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        content = write(Path(folder) / "a.tar", samples)
        assert list(read_shard(Path(folder) / "a.tar")) == samples
        assert (
            write(
                Path(folder) / "b.tar",
                [Sample(s.key, s.image, s.suffix, dict(reversed(s.meta.items()))) for s in samples],
            )
            == content
        )
    assert len(content) % tarfile.RECORDSIZE == 0


@MANY
@given(SAMPLES)
def test_the_bytes_are_those_of_tarfile(samples: list[Sample]) -> None:
    theirs = io.BytesIO()
    with tarfile.open(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            caption = sample.meta["captions"][0].encode()
            for suffix, content in (
                (sample.suffix, sample.image),
                ("json", canonical_json(sample.meta)),
                ("txt", caption),
            ):
                info = tarfile.TarInfo(f"{sample.key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    with tempfile.TemporaryDirectory() as folder:
        assert write(Path(folder) / "a.tar", samples) == theirs.getvalue()


@MANY
@given(SAMPLES, st.lists(st.integers(10**9, 10**9 + 9).map(str), unique=True, max_size=2))
def test_every_sample_is_found_by_its_key(samples: list[Sample], dropped: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        reader = ShardReader(dataset_of(Path(folder), samples, dropped))
        assert reader.keys() == [sample.key for sample in samples]
        assert [reader.sample(sample.key) for sample in reversed(samples)] == samples[::-1]
        for key in dropped:
            assert key not in reader
            with pytest.raises(KeyError):
                reader.meta(key)


@MANY
@given(SAMPLES, st.data())
def test_a_shard_that_was_cut_is_damaged_or_shorter_never_other_samples(samples: list[Sample], data: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        content = write(path, samples)
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        read: list[Sample] = []
        try:
            read.extend(read_shard(path))
        except UserError:
            return
        assert read == samples[: len(read)]


@MANY
@given(st.binary(max_size=2000))
def test_what_is_no_shard_is_refused_in_words(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tar"
        path.write_bytes(content)
        try:
            assert list(read_shard(path)) == []
        except UserError as error:
            assert str(path) in str(error)


@MANY
@given(SAMPLES.filter(lambda samples: len(samples) > 1))
def test_samples_out_of_order_are_refused(samples: list[Sample]) -> None:
    with tempfile.TemporaryDirectory() as folder, ShardWriter(Path(folder) / "a.tar") as writer:
        writer.write(samples[1])
        for sample in samples[:2]:
            with pytest.raises(AssertionError, match="sorted by key"):
                writer.write(sample)
