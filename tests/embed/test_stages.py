"""The room's table of stages, the CLIP's fact, and parts that any worker can make."""

import pickle
from pathlib import Path

import pytest

from data.pipeline.artifacts import publish_json
from data.pipeline.errors import Code, UserError
from data.pipeline.executors import InProcess
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.pipeline.runner import run_stage
from data.pipeline.stage import Input, PartSpec, Stage
from embed.clip.model import ClipSource
from embed.encoding.stage import embeddings_stage
from embed.scores.build import build_scores
from embed.scores.parts import cache_parts
from embed.scores.similarity import similarity_stage
from embed.stages import STAGES, clip_identity
from tests.conftest import make_config, save_tiny_clip
from tests.embed.conftest import VIEWS


def test_a_config_asks_for_optional_scores_by_their_tables(tmp_path: Path) -> None:
    plain, both = (
        make_config(tmp_path, embeddings=tables)
        for tables in ({}, {"aesthetic": {"head": "h.pth"}, "semantic": {"threshold": 0.9}})
    )
    assert [row.name for row in STAGES if row.asked_for(plain)] == ["embeddings", "scores/similarity"]
    assert all(row.asked_for(both) and row.follows == "dataset" for row in STAGES)


def make_clip(spec: PartSpec, attempt: Path) -> dict[str, int]:
    publish_json(attempt / "metrics.json", {"identity": spec.work})
    return {}


def test_the_identity_of_a_clip_is_told_where_the_run_has_trained_it(tmp_path: Path) -> None:
    run = Run(make_config(tmp_path, clip={"source": "run"}))
    assert clip_identity(run, "") is None
    run_stage(Stage("clip", 1, run.clip.folder, {}, [PartSpec("clip", (), "abc")], make_clip), InProcess())
    assert clip_identity(run, "") == "abc"
    assert clip_identity(Run(make_config(tmp_path)), "") is None  # a checkpoint: only its weights tell


def test_parts_travel_and_say_what_they_are_made_from(made_run: Run) -> None:
    embeddings = embeddings_stage(made_run)
    scores = similarity_stage(made_run, cache_parts(made_run.embeddings))
    for stage in (embeddings, scores):
        assert pickle.loads(pickle.dumps((stage.make, stage.parts))) == (stage.make, stage.parts)  # noqa: S301
    null, first, *_ = embeddings.parts
    encoder = Input("@clip", null.digest_of("@clip"))
    assert null.inputs == (encoder,)
    assert first.inputs == (encoder, Input("dataset:00000", made_run.dataset.part_digest("00000") or ""))
    assert scores.parts[2].inputs == (Input("embeddings:00002", made_run.embeddings.part_digest("00002") or ""),)


def test_a_checkpoint_is_found_from_another_folder(
    made_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_clip(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    source = ClipSource.of(Run(make_config(tmp_path, clip={"source": "checkpoint", "path": "mine"})))
    monkeypatch.chdir("/")
    assert source.load().name == "mine" and hash(source) == hash(pickle.loads(pickle.dumps(source)))  # noqa: S301


def test_scores_of_a_stale_cache_are_refused(own_run: Run) -> None:
    """A shard is another one than was embedded."""
    receipt = own_run.dataset.folder / "parts" / "00001.json"
    manifest = own_run.dataset.manifest_path
    before = receipt.read_text()
    receipt.write_text(before.replace('"sha256":"', '"sha256":"0', 1))
    manifest.write_text(manifest.read_text().replace(before.strip(), receipt.read_text().strip()))
    with pytest.raises(UserError, match="embeddings is stale .dataset:00001 has changed since") as refused:
        build_scores(own_run, InProcess())
    assert refused.value.code == Code.STALE
    assert Lineage(Run(make_config(own_run.folder.parent, views=VIEWS))).why_stale("scores/similarity") is not None
