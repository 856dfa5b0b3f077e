"""Model artifacts: weights, and beside them everything that says what they are.

models/<name>/config.json         kind, architecture, process, CLIP, training settings, inputs' digests, step
              model.safetensors   averaged (EMA) weights
              log.parquet         (step, name, value): loss and validation numbers, no times
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from data.pipeline.artifacts import Artifact, canonical_json, read_json
from data.pipeline.errors import Code, UserError
from data.pipeline.stage import Input
from training.diffusion.process import Process
from training.loop.state import LogRow, save_tensors
from training.networks.conditions import ClipShape
from training.tables import DiffusionSettings, OptimiserSettings

FORMAT = 2
CONFIG, WEIGHTS, LOG = "config.json", "model.safetensors", "log.parquet"
LOG_SCHEMA = pa.schema([("step", pa.int64()), ("name", pa.string()), ("value", pa.float64())])
Build = Callable[[Mapping[str, Any]], nn.Module]  # the untrained network that a model's config describes


@dataclass(frozen=True)
class Trained:
    """A network ready to sample from: averaged weights, evaluation mode, and the process it was trained for. `kind` is the name of
    the training that made it."""

    kind: str
    network: Any  # Prior or Decoder
    process: Process
    precision: str
    clip_identity: str
    config: Mapping[str, Any]

    def to(self, device: torch.device | str) -> "Trained":
        self.network.to(device)
        return self


@dataclass(frozen=True)
class Description:
    """What a model's `config.json` says of it. `architecture` and `diffusion` are the settings of those names, as JSON types."""

    kind: str
    architecture: Mapping[str, Any]
    diffusion: Mapping[str, Any]
    clip: ClipShape
    inputs: Sequence[Input]
    training: OptimiserSettings


def write_model(attempt: Path, described: Description, average: nn.Module, log: Sequence[LogRow]) -> None:
    """Write the files of a finished training: its averaged network and its log."""
    config = {
        "format": FORMAT, "kind": described.kind, "architecture": described.architecture, "diffusion": described.diffusion,
        "clip": asdict(described.clip), "inputs": {one.of: one.digest for one in described.inputs},
        "training": described.training.model_dump(mode="json"), "step": described.training.steps, "weights": "ema",
    }  # fmt: skip
    (attempt / CONFIG).write_bytes(canonical_json(config))
    save_tensors(dict(average.state_dict()), attempt / WEIGHTS)
    write_log(attempt / LOG, log)


def write_log(path: Path, log: Sequence[LogRow]) -> None:
    columns = [list(column) for column in zip(*log, strict=True)] if log else [[], [], []]
    pq.write_table(pa.table(columns, schema=LOG_SCHEMA), path)


def read_log(artifact: Artifact) -> list[LogRow]:
    """The log of a finished training, in its order."""
    return [(row["step"], row["name"], row["value"]) for row in pq.read_table(artifact.folder / LOG).to_pylist()]


def load_trained(artifact: Artifact, builders: Mapping[str, Build], clip_identity: str | None = None) -> Trained:
    """A model of one of the kinds that `builders` name, ready to sample from.

    Raises UserError when the artifact is not complete, is of another format or kind, does not fit its own description, or was
    trained beside another CLIP than `clip_identity`."""
    where = artifact.require("make train").folder
    config = read_json(where / CONFIG, "model config")
    _refuse_other_format(where, config)
    try:
        kind, identity, precision = config["kind"], config["inputs"]["@clip"], config["training"]["precision"]
        process = Process(DiffusionSettings(**config["diffusion"]))
        if kind not in builders:
            raise UserError(f"{where} holds a {kind}, not a {' or '.join(builders)}; name another folder")
        network = builders[kind](config)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where / CONFIG} does not describe a model: {type(error).__name__}: {error}", Code.DAMAGED
        ) from None
    if clip_identity is not None and identity != clip_identity:
        raise UserError(
            f"{where} was trained beside the CLIP {identity[:12]}, the one in use is {clip_identity[:12]}: their embeddings have "
            f"nothing in common; use the CLIP it was trained with, or delete {where} and run `make train`", Code.FOREIGN,
        )  # fmt: skip
    load_strictly(network, where / WEIGHTS)
    return Trained(kind, network.eval().requires_grad_(False), process, precision, identity, config)


def _refuse_other_format(where: Path, config: Mapping[str, Any]) -> None:
    found = config.get("format")
    if found != FORMAT:
        raise UserError(
            f"{where / CONFIG} has format {found!r}, this version reads {FORMAT}; delete {where} and run `make train`",
            Code.OTHER_VERSION,
        )


def load_strictly(network: nn.Module, path: Path) -> None:
    """Load safetensors whose names and shapes are exactly the network's. Raises UserError saying what differs."""
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}; train the model again", Code.DAMAGED) from None
    expected = network.state_dict()
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise UserError(
            f"{path} does not fit its config: {len(missing)} tensors missing ({', '.join(missing[:3]) or '-'}), "
            f"{len(extra)} unknown ({', '.join(extra[:3]) or '-'})", Code.DAMAGED,
        )  # fmt: skip
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, its config describes {tuple(expected[name].shape)}",
                Code.DAMAGED,
            )
    network.load_state_dict(found, strict=True)
