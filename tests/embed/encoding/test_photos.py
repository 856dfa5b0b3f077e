"""Real input: photographs with five human captions each through a random-weight ViT-B-32, against open_clip's own functions."""

import csv
import shutil

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from benchmarks import SHARED
from data.dataset.build import build_dataset
from data.dataset.shards import ShardReader
from data.pipeline.artifacts import read_json
from data.pipeline.config import parse_config
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from embed.clip.model import load_clip
from embed.encoding.stage import build_embeddings
from embed.reading.reader import EmbeddingReader
from embed.show import key_query, nearest
from embed.verify import verify_cache

PHOTOS = SHARED / "photos"
N = 12

pytestmark = pytest.mark.skipif(not PHOTOS.is_dir(), reason="the shared photographs are not here")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Twelve photographs in two shards."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "images").mkdir()
    with (PHOTOS / "captions.csv").open(newline="") as file:
        rows = [(row["file"], row["caption"]) for row in csv.DictReader(file)]
    chosen = sorted({name for name, _ in rows})[:N]
    for name in chosen:
        shutil.copy(PHOTOS / "images" / name, folder / "images")
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "caption"), *(row for row in rows if row[0] in chosen)])
    tables = {
        "run": {"name": "photos", "folder": str(folder), "seed": 5},
        "cluster": {"workers": 0},
        "dataset": {
            "folder": {"path": str(folder / "images"), "captions": str(folder / "captions.csv")},
            "samples_per_shard": 7, "image": {"mode": "no"},
        },
        "clip": {"source": "random", "model": "ViT-B-32"},
        "embeddings": {"batch": 5},
    }  # fmt: skip
    run = Run.open(parse_config(tables, "photos"))
    build_dataset(run, InProcess())
    build_embeddings(run, InProcess())
    return run


def test_photographs_and_captions_have_open_clips_vectors(run: Run) -> None:
    clip, shards = load_clip(run), ShardReader(run.dataset)
    torch.manual_seed(5)
    model = open_clip.create_model("ViT-B-32").eval()
    theirs, preprocess = open_clip.get_tokenizer("ViT-B-32"), open_clip.image_transform(224, is_train=False)
    assert torch.equal(model.ln_final.weight, clip.model.ln_final.weight)
    keys = shards.keys()
    batch = EmbeddingReader(run.embeddings, identity=clip.identity).fetch(np.arange(5 * N))
    assert batch.keys == [key for key in keys for _ in range(5)]
    captions = [caption for key in keys for caption in shards.meta(key)["captions"]]
    with torch.inference_mode():
        pixels = torch.stack([preprocess(Image.fromarray(shards.image(key))) for key in keys])
        image = normalize(model.encode_image(pixels), dim=-1)
        text = normalize(model.encode_text(theirs(captions)), dim=-1)
    assert torch.equal(batch.token_ids, theirs(captions))
    assert (normalize(clip.encode_pixels(pixels), dim=-1) - image).abs().max() < 1e-5
    assert (clip.encode_text(theirs(captions)) - text).abs().max() < 1e-5
    assert (batch.image_embedding[::5] - image).abs().max() < 1e-4  # float16 storage
    assert (batch.text_embedding - text).abs().max() < 1e-4


def test_their_cache_verifies_and_its_statistics_count_each_once(run: Run) -> None:
    assert verify_cache(run, 10) == []
    content = read_json(run.embeddings.folder / "statistics.json", "statistics")
    assert content["counts"]["distinct_images"] == N and 4 * N < content["counts"]["distinct_captions"] <= 5 * N
    assert content["similarity"]["pairs"]["n"] == 5 * N and content["image"]["norm"]["mean"] > 0
    key = ShardReader(run.dataset).keys()[3]
    found = nearest(run, key_query(run, key), N)
    assert len(found) == N - 1 and key not in {f.key for f in found} and 0.5 < found[-1].cosine <= found[0].cosine < 1
