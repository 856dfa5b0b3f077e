"""Cache and shards joined by key, on a dataset and a cache as the stages make them."""

import numpy as np
import pytest
import torch

from data.dataset.build import build_dataset
from data.dataset.shards import ShardReader
from data.pipeline.artifacts import publish_json, read_json
from data.pipeline.errors import UserError
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from embed.clip.model import load_clip
from embed.encoding.stage import build_embeddings
from embed.reading.join import with_images
from embed.reading.reader import EmbeddingReader
from tests.conftest import make_config, save_tiny_clip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    save_tiny_clip(folder / "tiny-clip")
    run = Run.open(make_config(folder))
    build_dataset(run, InProcess())
    build_embeddings(run, InProcess())
    return run


@pytest.mark.parametrize("limit", [3000, 10**9])
def test_each_pair_comes_with_the_image_that_its_embedding_is_of(run: Run, limit: int) -> None:
    clip, shards = load_clip(run), ShardReader(run.dataset)
    reader = EmbeddingReader(run.embeddings, identity=clip.identity, memory_limit=limit)
    assert set(reader.keys.tolist()) == set(shards.keys())
    seen = 0
    for batch, images in with_images(reader.batches(16, 0), run.embeddings, run.dataset, threads=2):
        assert all(np.array_equal(image, shards.image(key)) for image, key in zip(images, batch.keys, strict=True))
        assert (clip.encode_images(np.stack(images)) - batch.image_embedding).abs().max() < 1e-3
        assert torch.equal(
            clip.tokenize(reader.captions(reader.find(batch.keys, batch.caption_index.tolist()))), batch.token_ids
        )
        seen += len(images)
    assert seen == len(reader) == 60


def test_stopping_early_leaves_nothing_running(run: Run) -> None:
    joined = with_images(EmbeddingReader(run.embeddings).batches(4, 0, epochs=None), run.embeddings, run.dataset)
    assert len(next(joined)[1]) == 4
    joined.close()


def test_shards_that_changed_since_are_refused(run: Run) -> None:
    path = run.dataset.manifest_path
    manifest = read_json(path, "manifest")
    before = path.read_bytes()
    manifest["parts"][1]["files"]["shards/00001.tar"]["sha256"] = "0" * 64
    publish_json(path, manifest)
    try:
        with pytest.raises(
            UserError, match=r"made from other shards than those in .*: 1 differ, e.g. 00001; run `make embeddings`"
        ):
            next(with_images(EmbeddingReader(run.embeddings).batches(4, 0), run.embeddings, run.dataset))
    finally:
        path.write_bytes(before)
