"""LAION's linear heads: loaded without unpickling code, equal to torch's own linear layer, refused where they do not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from benchmarks import SHARED
from benchmarks.fake_cache import unit_vectors, write_cache
from data.pipeline.config import parse_config
from data.pipeline.errors import Code, UserError
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from embed.scores.aesthetic import LAION_HEADS_BY_DIGEST, load_head
from embed.scores.build import build_scores
from tests.conftest import make_config

HEADS = SHARED / "aesthetic_heads"
needs_heads = pytest.mark.skipif(not HEADS.is_dir(), reason=f"LAION's heads are not in {HEADS}")


def save_head(path: Path, dim: int = 8) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(dim, 1)
    torch.save(layer.state_dict(), path)
    return layer


def make_run(folder: Path, head: Path, dim: int, clip: str = "fake/random", **settings: Any) -> Run:
    run = Run.open(make_config(folder, embeddings={"aesthetic": {"head": str(head), **settings}}))
    write_cache(run.embeddings.folder, [range(20), range(20, 33)], dim, 2, 7, 12, clip_name=clip)
    return run


@needs_heads
@pytest.mark.parametrize(("name", "dim", "clip"), [("b_32", 512, "ViT-B-32"), ("l_14", 768, "ViT-L-14")])
def test_laions_heads_score_as_laions_own_layer_does(name: str, dim: int, clip: str) -> None:
    path = HEADS / f"sa_0_4_vit_{name}_linear.pth"
    layer = nn.Linear(dim, 1)  # as the heads' README loads them
    layer.load_state_dict(torch.load(path, weights_only=True))
    head = load_head(path)
    vectors = unit_vectors(np.arange(3000), dim)
    with torch.inference_mode():
        expected = layer(normalize(torch.from_numpy(vectors.astype(np.float32)), dim=-1))[:, 0].numpy()
    assert np.abs(head.score(vectors) - expected).max() < 1e-5
    assert (head.trained_on, head.dim) == (clip, dim)
    assert [head.fits(c) for c in (f"{clip}/openai", f"{clip}-quickgelu/openai", f"{clip}/laion2b_e16", "folder")] == [
        True, True, False, None,
    ]  # fmt: skip
    # A head weighs directions that raise a photograph's rating: unit vectors along and against it bound all scores.
    along = (head.weight / np.linalg.norm(head.weight)).astype("<f2")[None]
    ends = head.score(np.concatenate([along, -along]))
    assert np.allclose(ends, head.bias + np.linalg.norm(head.weight) * np.array([1, -1]), atol=0.05)


@needs_heads
def test_laions_head_on_another_clip_is_refused_or_marked(tmp_path: Path) -> None:
    head = HEADS / "sa_0_4_vit_b_32_linear.pth"
    with pytest.raises(
        UserError, match=r"trained on embeddings of OpenAI's ViT-B-32, the cache holds those of fake/random.*any_clip"
    ):
        build_scores(make_run(tmp_path / "a", head, 512), InProcess())
    marked = build_scores(make_run(tmp_path / "b", head, 512, any_clip=True), InProcess())[1]
    assert marked.settings()["clip_is_the_heads"] is False and marked.settings()["head_clip"] == "ViT-B-32"
    fitting = build_scores(make_run(tmp_path / "c", head, 512, "ViT-B-32-quickgelu/openai"), InProcess())[1]
    assert fitting.settings()["clip_is_the_heads"] is True
    with pytest.raises(
        UserError, match=r"takes embeddings of 512 numbers, those of fake/random in .* have 768; LAION's heads exist"
    ):
        build_scores(make_run(tmp_path / "d", head, 768), InProcess())


def test_a_head_saved_again_is_known_by_laions_name(tmp_path: Path) -> None:
    for name, clip in (("sa_0_4_vit_b_16_linear.pth", "ViT-B-16"), ("other.pth", None)):
        save_head(tmp_path / name)
        head = load_head(tmp_path / name)
        assert head.trained_on == clip and head.fits("ViT-B-32/openai") == (None if clip is None else False)


def test_every_pair_is_scored_by_its_image(tmp_path: Path) -> None:
    layer = save_head(tmp_path / "head.pth")
    run = make_run(tmp_path / "r", tmp_path / "head.pth", 8)
    artifact = build_scores(run, InProcess())[1]
    assert artifact.settings()["clip_is_the_heads"] == "unknown" and artifact.manifest()["counts"] == {"pairs": 66}
    table = pq.read_table(artifact.folder / "00001.parquet")
    assert table.column_names == ["key", "caption_index", "aesthetic"]
    images = torch.from_numpy(unit_vectors(np.repeat(np.arange(20, 33), 2), 8).astype(np.float32))
    assert np.allclose(
        table["aesthetic"].to_numpy(), layer(normalize(images, dim=-1)).detach().numpy()[:, 0], atol=1e-5
    )


def test_what_is_no_linear_head_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.pth"
    with pytest.raises(UserError, match=r"head.pth does not exist; get a file such as sa_0_4_vit_l_14_linear.pth"):
        load_head(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match="is not a file of tensors"):
        load_head(path)
    torch.save({"weight": torch.zeros(1, 4), "bias": save_head}, path)  # a function: code, not tensors
    with pytest.raises(UserError, match="is not a file of tensors"):
        load_head(path)
    torch.save({"layers.0.weight": torch.zeros(1024, 768)}, path)
    with pytest.raises(
        UserError, match=r"is not a linear head, which holds weight \(1, d\) and bias \(1,\); it holds .*layers.0"
    ):
        load_head(path)


@pytest.mark.parametrize("content", [b"root:x:0:0:root:/root:/bin/bash\n", b"\x80\x02\x00\x00", b"(lp0\n.", b""])
def test_a_file_of_anything_is_refused_in_our_own_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "head.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"head.pth is not (a file of tensors|a linear head)") as refused:
        load_head(tmp_path / "head.pth")
    assert "weights_only" not in str(refused.value)


def test_a_head_that_does_not_fit_is_told_before_any_score_is_made(tmp_path: Path) -> None:
    torch.save({"weight": "none", "bias": 3}, tmp_path / "head.pth")
    run = make_run(tmp_path / "r", tmp_path / "head.pth", 8)
    with pytest.raises(UserError, match="is not a linear head, .*it holds no named tensors"):
        build_scores(run, InProcess())
    assert not run.scores("similarity").folder.exists()


def test_laions_head_on_a_clip_from_a_folder_is_noted_and_on_the_runs_own_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_head(tmp_path / "sa_0_4_vit_b_32_linear.pth")
    folder = build_scores(make_run(tmp_path / "a", tmp_path / "sa_0_4_vit_b_32_linear.pth", 8, "clip"), InProcess())[1]
    assert folder.settings()["clip_is_the_heads"] == "unknown" and folder.settings()["head_clip"] == "ViT-B-32"
    # Of the run's own CLIP it is known when the file is read, by the name; by the digest when scores are made.
    own = make_run(tmp_path / "b", tmp_path / "head.pth", 8, "clip").config.to_dict() | {"clip": {"source": "run"}}
    save_head(tmp_path / "head.pth")
    monkeypatch.setitem(LAION_HEADS_BY_DIGEST, load_head(tmp_path / "head.pth").digest, "ViT-B-32")
    with pytest.raises(
        UserError, match="trained on embeddings of OpenAI's ViT-B-32, the cache holds those of clip"
    ) as refused:
        build_scores(Run(parse_config(own, "test")), InProcess())
    assert refused.value.code == Code.FOREIGN
