"""The loop: exact resume, schedule, average, data order, and that it learns."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from data.pipeline.errors import Code, UserError
from training.loop.ema import Ema
from training.loop.schedule import learning_rate
from training.loop.state import load_state, parameter_groups
from training.loop.trainer import Trainer
from training.seeds import derived_seed, seeded
from training.tables import OptimiserSettings

sys.path.insert(0, str(Path(__file__).parent))
from fake_task import SETTINGS, FakeTask, trainer


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    return {**run.network.state_dict(), **{f"ema.{k}": v for k, v in run.ema.state_dict().items()}}


def assert_equal(a: Trainer, b: Trainer) -> None:
    assert a.done.step == b.done.step and a.done.log == b.done.log
    for name, tensor in weights(a).items():
        assert torch.equal(tensor, weights(b)[name]), name


def test_resume_is_bit_equal_to_an_uninterrupted_run(tmp_path: Path) -> None:
    straight = trainer(tmp_path / "a")
    straight.run()
    for stop in (1, 4, 7):  # on and between log rows, inside an epoch
        folder = tmp_path / f"b{stop}"
        first = trainer(folder)
        for step in range(stop):
            first.done.step += 1
            first.record(first.update(step))
            if first.done.step % 4 == 0:
                first.validate()
        first.save()
        resumed = trainer(folder)
        assert resumed.done.step == stop
        resumed.run()
        assert_equal(straight, resumed)


@pytest.mark.parametrize("fault", ["training-state@6", "training-latest@6", "training-latest@12"])
def test_killed_training_goes_on_bit_equal(tmp_path: Path, fault: str) -> None:
    straight = trainer(tmp_path / "straight")
    straight.run()
    folder = tmp_path / "killed"
    command = [sys.executable, str(Path(__file__).parent / "fake_task.py"), str(folder)]
    environment = {**os.environ, "UNCLIP_FAULT": fault, "PYTHONPATH": os.getcwd()}
    died = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    resumed = trainer(folder, checkpoint_seconds=1e-9)
    assert resumed.done.step == int(fault.split("@")[1]) - 1
    resumed.run()
    assert_equal(straight, resumed)
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step-00000011", "step-00000012"]


def test_state_is_loaded_strictly(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.done.step = 1
    run.save()
    other = nn.Linear(4, 8)
    with pytest.raises(RuntimeError):
        load_state(tmp_path, other, Ema(other, 0.9), torch.optim.AdamW(other.parameters()))


class PlainTask(FakeTask):
    """Without dropout, batch statistics and noise."""

    def __init__(self) -> None:
        super().__init__()
        with seeded("plain"):
            self.network = nn.Linear(4, 1)

    def loss(self, model, batch, generator, device):  # type: ignore[no-untyped-def]
        return (model(batch) - batch.sum(1, keepdim=True)).square().mean()


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    found = []
    for accumulation in (1, 4):
        settings = SETTINGS.model_copy(update={"batch": 8, "accumulation": accumulation, "steps": 3})
        run = Trainer(PlainTask(), settings, 0, tmp_path / str(accumulation), 1e9)
        run.run()
        found.append(run.network.weight.detach())
    assert torch.allclose(found[0], found[1], atol=1e-6)


def test_loss_falls_and_is_logged(tmp_path: Path) -> None:
    run = Trainer(PlainTask(), SETTINGS.model_copy(update={"steps": 150}), 0, tmp_path, 1e9)
    _, log = run.run()
    losses = [value for _, name, value in log if name == "loss"]
    assert losses[-1] < losses[0] / 100
    assert [step for step, name, _ in log if name == "loss"] == list(range(5, 151, 5))
    assert log[-1][1] == "val/error" and log[-1][0] == 150


def test_a_diverged_loss_stops_with_advice(tmp_path: Path) -> None:
    class Diverging(FakeTask):
        def loss(self, model, batch, generator, device):  # type: ignore[no-untyped-def]
            return super().loss(model, batch, generator, device) * float("inf")

    with pytest.raises(UserError, match=r"lower optimiser\.lr"):
        Trainer(Diverging(), SETTINGS, 0, tmp_path, 1e9).run()


def test_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to train on") as error:
        Trainer(FakeTask(size=0), SETTINGS, 0, tmp_path, 1e9)
    assert error.value.code == Code.EMPTY


def test_learning_rate_warms_up_and_decays() -> None:
    settings = OptimiserSettings(steps=110, lr=1.0, warmup=10, final_lr=0.1)
    assert [learning_rate(s, settings) for s in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert learning_rate(60, settings) == pytest.approx(0.55)
    assert learning_rate(110, settings) == pytest.approx(0.1)
    assert learning_rate(90, settings.model_copy(update={"schedule": "constant"})) == 1.0


def test_ema_is_its_closed_form() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 2.0)
    ema, expected = Ema(network, 0.9), 2.0
    for n in range(200):
        nn.init.constant_(network.weight, math.sin(n))
        ema.update(network, n)
        d = min(0.9, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * math.sin(n)
    assert ema.module.weight.item() == pytest.approx(expected, abs=1e-5)


def test_only_matrices_decay_and_frozen_parameters_stay_out() -> None:
    decayed, rest = parameter_groups(FakeTask().network, 0.3)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.3, 0.0)
    assert [p.ndim for p in decayed["params"]] == [2, 2]  # type: ignore[attr-defined]
    assert [p.ndim for p in rest["params"]] == [1, 1, 1, 1]  # type: ignore[attr-defined]


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    run = trainer(tmp_path)
    run.update(0)
    assert torch.equal(torch.randn(3), expected)


def test_derived_seeds_differ_by_every_part() -> None:
    seeds = {derived_seed(*parts) for parts in [("a", 0), ("a", 1), ("b", 0), ("a", 0, 0), (0, "a"), ("a", "0")]}
    assert len(seeds) == 6 and all(0 <= seed < 2**63 for seed in seeds)
