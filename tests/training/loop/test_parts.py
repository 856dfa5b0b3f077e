"""Small pieces: pixels, the choice among the prior's draws, drop rates, retrieval, CLIP's pixels, the front door."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.pipeline.run import Run
from embed.clip.model import load_clip
from embed.reading.reader import PairBatch
from tests.conftest import make_config
from training.__main__ import COMMANDS
from training.sampling.batches import fixed_batches
from training.sampling.prior import keep_closest
from training.settings import DecoderSettings
from training.tables import ClipArchitecture
from training.tasks.clip import clip_pixels, model_config, normalised, retrieval
from training.tasks.decoder import DecoderTask
from training.tasks.pairs import spread
from training.tasks.prior import cosines


def test_the_draw_closest_to_the_text_is_kept() -> None:
    z_t = torch.eye(2)
    draws = torch.tensor([[[0.1, 0.9], [0.2, 0.8]], [[0.5, 0.5], [0.9, 0.1]]])
    assert keep_closest(draws, z_t).tolist() == [draws[1, 0].tolist(), draws[0, 1].tolist()]


def test_batches_have_one_size_and_cover_every_row_once() -> None:
    batches = list(fixed_batches(7, 3))
    assert [rows.tolist() for rows, _ in batches] == [[0, 1, 2], [3, 4, 5], [6, 6, 6]]
    assert [count for _, count in batches] == [3, 3, 1]
    assert list(fixed_batches(0, 3)) == []


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("decoder", {"both": 0.45, "clip": 0.45, "caption": 0.05, "none": 0.05}),
        ("glide", {"caption": 0.85, "none": 0.15}),
    ],
)
def test_drop_rates(kind: str, expected: dict[str, float]) -> None:
    task = object.__new__(DecoderTask)
    task.name, task.settings = kind, DecoderSettings()
    n = 100_000
    no_caption, no_clip = task.draw_drops(n, torch.Generator().manual_seed(0))
    found = {
        "both": ~no_caption & ~no_clip, "clip": no_caption & ~no_clip, "caption": ~no_caption & no_clip, "none": no_caption & no_clip,
    }  # fmt: skip
    for name, mask in found.items():
        assert mask.float().mean().item() == pytest.approx(expected.get(name, 0.0), abs=0.006), name


def test_spread_covers_the_range_in_order() -> None:
    assert spread(10, 4).tolist() == [0, 3, 6, 9]
    assert spread(3, 100).tolist() == [0, 1, 2]


def test_controls_of_the_prior_compare_with_other_images() -> None:
    truth = torch.eye(4).repeat_interleave(2, dim=0)  # four images, two captions each
    pairs = PairBatch(
        list("aabbccdd"), np.array([0, 1] * 4, np.int32), truth, -truth, torch.zeros(8, 3), torch.zeros(8)
    )
    found = cosines(truth, pairs, torch.ones(4))
    expected = {"cosine_drawn": 1.0, "cosine_text": -1.0, "cosine_mean": 0.5, "cosine_shuffled": 0.0}
    assert found == pytest.approx(expected)


def test_retrieval_of_known_neighbours() -> None:
    z_i = torch.eye(6, dtype=torch.float64)
    assert retrieval(z_i, z_i)["image_to_text_r1"] == 1.0
    shifted = retrieval(z_i, z_i.roll(1, 0))
    assert (shifted["image_to_text_r1"], shifted["text_to_image_r1"]) == (0.0, 0.0)
    same = torch.ones(6, 2, dtype=torch.float64)
    assert retrieval(same, same)["image_to_text_r5"] == 0.0  # ties count against us


def test_retrieval_agrees_with_torchmetrics() -> None:
    """Where nothing is tied: torchmetrics compares in float32, and which of two equally near comes first is chance there."""
    from torchmetrics.functional.retrieval import retrieval_recall

    generator = torch.Generator().manual_seed(0)
    z_i = torch.nn.functional.normalize(torch.randn(40, 6, generator=generator, dtype=torch.float64), dim=1)
    noise = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    z_t = torch.nn.functional.normalize(z_i + 0.4 * noise, dim=1)
    found, own = retrieval(z_i, z_t), torch.eye(40, dtype=torch.bool)
    for name, similarity in (("image_to_text", z_i @ z_t.T), ("text_to_image", z_t @ z_i.T)):
        for k in (1, 5):
            recall = [float(retrieval_recall(similarity[i] + 2, own[i], top_k=k)) for i in range(40)]
            assert 0 < found[f"{name}_r{k}"] < 1
            assert found[f"{name}_r{k}"] == pytest.approx(float(np.mean(recall)))


@pytest.mark.parametrize("shape", [(64, 64), (40, 90)])
def test_clip_trains_on_what_its_own_preprocessing_gives(embedded_run: Run, shape: tuple[int, int]) -> None:
    clip = load_clip(embedded_run)
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    pixels = torch.from_numpy(clip_pixels(image, clip.image_size)).permute(2, 0, 1)[None]
    assert torch.allclose(normalised(pixels)[0], clip.preprocess(Image.fromarray(image)), atol=1e-5)


def test_both_kinds_of_image_tower_can_be_built() -> None:
    from open_clip import CLIP

    for settings in (
        ClipArchitecture(width=8, head_width=8),
        ClipArchitecture(width=16, head_width=8, patch=8, depth=1),
    ):
        network = CLIP(**model_config(settings, vocab_size=600)).eval()
        assert network.encode_image(torch.zeros(1, 3, 32, 32)).shape == (1, settings.embed_dim)


def test_front_door_says_when_no_clip_is_trained(
    trained_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from data.pipeline.cli import front_door

    assert front_door("training", "", COMMANDS, ["clip", "--config", str(trained_run.folder / "config.toml")]) == 0
    assert str(trained_run.clip.folder) in capsys.readouterr().out
    pretrained = make_config(tmp_path)
    (tmp_path / "other.toml").write_text(pretrained.to_toml())
    assert front_door("training", "", COMMANDS, ["clip", "--config", str(tmp_path / "other.toml")]) == 0
    assert "nothing to train" in capsys.readouterr().out
