"""Everything that a training needs to go on exactly where it stood, as safetensors and JSON.

    state/latest               name of the newest complete folder
    state/step-00000500/       network.safetensors  average.safetensors  optimiser.safetensors  state.json

The noise of every step is derived from (seed, step) and the data order from the step alone, so neither a generator nor a
reader has a state of its own.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.pipeline.artifacts import canonical_json, fsync_path, publish_bytes
from data.pipeline.faults import boundary
from training.loop.ema import Ema

KEPT = 2
LogRow = tuple[int, str, float]  # step, name, value


@dataclass
class Progress:
    """How far a training is: updates done, the losses since the last log row, and the log (step, name, value)."""

    step: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    log: list[LogRow] = field(default_factory=list)


def save_state(folder: Path, network: nn.Module, ema: Ema, optimiser: torch.optim.Optimizer, done: Progress) -> None:
    """Write a new state folder, point `latest` at it and delete all but the newest. A kill at any point leaves the former state."""
    name = f"step-{done.step:08d}"
    temporary = folder / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_tensors(dict(network.state_dict()), temporary / "network.safetensors")
    save_tensors(dict(ema.state_dict()), temporary / "average.safetensors")
    save_tensors(optimiser_tensors(network, optimiser), temporary / "optimiser.safetensors")
    (temporary / "state.json").write_bytes(canonical_json(vars(done)))
    for path in [*sorted(temporary.iterdir()), temporary]:
        fsync_path(path)
    boundary("training-state", str(done.step))
    shutil.rmtree(folder / name, ignore_errors=True)
    os.replace(temporary, folder / name)
    fsync_path(folder)
    boundary("training-latest", str(done.step))
    publish_bytes(folder / "latest", name.encode())
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)


def load_state(folder: Path, network: nn.Module, ema: Ema, optimiser: torch.optim.Optimizer) -> Progress:
    """Load the newest state into the given objects; a fresh `Progress` where there is none."""
    if not (folder / "latest").exists():
        return Progress()
    newest = folder / (folder / "latest").read_text()
    network.load_state_dict(load_file(newest / "network.safetensors"), strict=True)
    ema.module.load_state_dict(load_file(newest / "average.safetensors"), strict=True)
    set_optimiser_tensors(network, optimiser, load_file(newest / "optimiser.safetensors"))
    content = json.loads((newest / "state.json").read_bytes())
    content["log"] = [(step, name, value) for step, name, value in content["log"]]
    return Progress(**content)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """safetensors refuses views and shared storage: each tensor is written as a contiguous copy of its own."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)


def optimiser_tensors(network: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's state flattened to `<parameter>/<moment>`."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in network.named_parameters()}
    return {
        f"{names[parameter]}/{moment}": value
        for parameter, moments in optimiser.state.items()
        for moment, value in moments.items()
    }


def set_optimiser_tensors(network: nn.Module, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimiser_tensors`, onto each parameter's device."""
    parameters = dict(network.named_parameters())
    for flat, value in tensors.items():
        name, _, moment = flat.rpartition("/")
        parameter = parameters[name]
        # Adam keeps its step counters where it created them: on the CPU, or beside the parameter when fused.
        optimiser.state[parameter][moment] = value.to(parameter.device)


def parameter_groups(network: nn.Module, weight_decay: float) -> Sequence[dict[str, object]]:
    """Matrices and kernels decay; biases, norms and scalars do not."""
    trained = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
