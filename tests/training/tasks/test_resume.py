"""A decoder that reads the states of the frozen CLIP: going on after a kill is exact, and nobody else trains from the same state."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.pipeline.config import parse_config
from data.pipeline.errors import Code, UserError
from data.pipeline.run import Run
from embed.clip.model import ClipSource
from training.loop.precision import plain_attention
from training.loop.trainer import Trainer
from training.settings import DecoderSettings
from training.tasks.decoder import DecoderTask, open_pixels
from training.tasks.pairs import read_pairs
from training.tasks.part import Work, training_alone
from training.tasks.prior import prior_stage

STEPS = 12


@pytest.fixture(scope="module")
def run(embedded_run: Run) -> Run:
    """`embedded_run`, its decoder with the text tower of its CLIP."""
    tables = embedded_run.config.to_dict()
    tables["decoder"]["architecture"]["text"] = {"start": "clip", "width": 16}
    tables["decoder"]["optimiser"]["steps"] = STEPS
    return Run(parse_config(tables, "test"))


def trained(run: Run, state: Path, stops: Sequence[int] = (), ahead: int = 2) -> dict[str, Tensor]:
    """The averaged weights, trained in as many sittings as there are stops, and one more."""
    settings = run.config[DecoderSettings]
    for stop in (*stops, STEPS):
        with training_alone(state) as device:
            pairs = read_pairs(Work(run, "decoder", state, ClipSource.of(run)), device)
            with open_pixels(run, pairs, settings) as pixels:
                task = DecoderTask("decoder", settings, pairs, pixels, 0)
                trainer = Trainer(task, settings.optimiser, 0, state, 1e9)
                trainer.feed._ahead = ahead
                if stop == STEPS:
                    return dict(trainer.run()[0].state_dict())
                with trainer.feed:
                    for step in range(trainer.done.step, stop):
                        trainer.record(trainer.update(step))
                        trainer.done.step += 1
                    trainer.save()
    raise AssertionError("trained to the end above")


def test_neither_a_kill_nor_reading_ahead_changes_a_weight(run: Run, tmp_path: Path) -> None:
    straight = trained(run, tmp_path / "straight")
    ways = {
        "without reading ahead": trained(run, tmp_path / "serial", ahead=0),
        "resumed once": trained(run, tmp_path / "once", (5,)),
        "resumed often": trained(run, tmp_path / "often", (1, 2, 7)),
    }
    for way, weights in ways.items():
        assert weights.keys() == straight.keys()
        changed = [name for name, tensor in weights.items() if not torch.equal(tensor, straight[name])]
        assert not changed, way


def test_a_training_that_still_runs_elsewhere_keeps_its_state_to_itself(tmp_path: Path) -> None:
    """A driver that was stopped leaves its task on an external scheduler's worker."""
    state = tmp_path / "state"
    program = "import sys\nfrom pathlib import Path\nfrom data.pipeline.runner import locked\n"
    program += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    command = [sys.executable, "-c", program, str(state)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="still runs elsewhere") as error, training_alone(state):
            pass
        assert error.value.code == Code.BUSY
        other.communicate()
    with training_alone(state):
        pass


def test_another_number_of_processes_is_another_training(embedded_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    states = set()
    for ranks in ("1", "2", "4"):
        monkeypatch.setenv("WORLD_SIZE", ranks)
        states.add(prior_stage(embedded_run).parts[0].work.state)
    assert len(states) == 3


def test_the_kernel_is_chosen_for_all_threads_until_the_last_has_left(tmp_path: Path) -> None:
    assert torch.backends.cuda.flash_sdp_enabled()
    outer, inner = plain_attention(torch.device("cpu")), plain_attention(torch.device("cpu"))
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)  # a thread that reads ahead may outlive the training
    assert not torch.backends.cuda.flash_sdp_enabled()
    inner.__exit__(None, None, None)
    assert torch.backends.cuda.flash_sdp_enabled()
    with training_alone(tmp_path):
        assert not torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.math_sdp_enabled()
