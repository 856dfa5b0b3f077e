"""Model artifacts: weights, and beside them everything that says what they are.

models/<name>/config.json         kind, architecture, process, CLIP identity, training settings, inputs' digests, step
              model.safetensors   averaged (EMA) weights
              log.parquet         (step, name, value): loss and validation numbers, no times
"""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from data.pipeline.artifacts import Artifact, PartSpec, canonical_json, fingerprint, read_json
from data.pipeline.config import parse_config
from data.pipeline.errors import UserError
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.pipeline.runner import MakePart, Stage, run_stage
from training.diffusion.process import Process
from training.loop.state import save_tensors
from training.loop.trainer import LogRow, Trainer
from training.networks.conditions import ClipShape
from training.networks.prior import Prior
from training.networks.unet import Decoder
from training.settings import DecoderArchitecture, DiffusionSettings, PriorArchitecture, TrainingSection

FORMAT = 1
STAGE_VERSION = 1
CONFIG, WEIGHTS, LOG = "config.json", "model.safetensors", "log.parquet"
LOG_SCHEMA = pa.schema([("step", pa.int64()), ("name", pa.string()), ("value", pa.float64())])
Kind = Literal["prior", "decoder", "glide"]


@dataclass(frozen=True)
class Trained:
    """A network ready to sample from: averaged weights, evaluation mode, and the process it was trained for."""

    kind: Kind
    network: Any  # Prior or Decoder
    process: Process
    precision: str
    clip_identity: str
    config: Mapping[str, Any]

    def to(self, device: torch.device | str) -> "Trained":
        self.network.to(device)
        return self


def train_model(
    run: Run, artifact: Artifact, name: str, settings: TrainingSection, inputs: Mapping[str, str], make: MakePart
) -> Artifact:
    """Train as a stage of one part. A killed training goes on from its working state in the run's scratch; a finished one is
    kept, and refused (not replaced) when its settings or inputs have changed."""
    shaping = {"seed": run.seed, name: settings.shaping()}
    work = run.scratch / "train" / name / fingerprint([STAGE_VERSION, shaping, dict(inputs)])[:16]
    part = PartSpec("model", inputs, {"config": run.config.to_dict(), "work": str(work)})
    stage = Stage(f"train-{name}", STAGE_VERSION, artifact.folder, shaping, [part], make, unit="models", precious=True)
    run_stage(stage, InProcess(), run.logs)
    shutil.rmtree(work, ignore_errors=True)
    return artifact


def run_of(spec: PartSpec) -> Run:
    """The run that a training part belongs to."""
    return Run(parse_config(dict(spec.payload["config"]), "the run's config"))


def write_model(
    attempt: Path, kind: Kind, trainer: Trainer, architecture: Mapping[str, Any], clip: ClipShape, spec: PartSpec
) -> None:
    """Train to the end and write the artifact's files. `architecture` holds `architecture` and `diffusion`."""
    average, log = trainer.run()
    config = {
        "format": FORMAT, "kind": kind, **architecture, "clip": asdict(clip), "inputs": dict(spec.inputs),
        "training": trainer.settings.model_dump(mode="json"), "step": trainer.done.step, "weights": "ema",
    }  # fmt: skip
    (attempt / CONFIG).write_bytes(canonical_json(config))
    save_tensors(dict(average.state_dict()), attempt / WEIGHTS)
    write_log(attempt / LOG, log)


def write_log(path: Path, log: list[LogRow]) -> None:
    columns = [list(column) for column in zip(*log, strict=True)] if log else [[], [], []]
    pq.write_table(pa.table(columns, schema=LOG_SCHEMA), path)


def load_prior(artifact: Artifact, clip_identity: str | None = None) -> Trained:
    """Raises UserError when the artifact is not a prior, is not complete, or was trained beside another CLIP."""
    return _load(artifact, ("prior",), clip_identity)


def load_decoder(artifact: Artifact, clip_identity: str | None = None) -> Trained:
    """A decoder or a GLIDE baseline; refuses like `load_prior`."""
    return _load(artifact, ("decoder", "glide"), clip_identity)


def _load(artifact: Artifact, kinds: tuple[Kind, ...], clip_identity: str | None) -> Trained:
    where = artifact.require("make train").folder
    config = read_json(where / CONFIG, "model config")
    if config.get("format") != FORMAT:
        found = config.get("format")
        raise UserError(
            f"{where / CONFIG} has format {found!r}, this version reads {FORMAT}; train it again (`make train`)"
        )
    try:
        kind, identity, precision = config["kind"], config["inputs"]["clip"], config["training"]["precision"]
        network, process = build(config), Process(DiffusionSettings(**config["diffusion"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where / CONFIG} does not describe a model: {type(error).__name__}: {error}") from None
    if kind not in kinds:
        raise UserError(f"{where} holds a {kind}, not a {' or '.join(kinds)}; name another folder")
    if clip_identity is not None and identity != clip_identity:
        raise UserError(
            f"{where} was trained beside the CLIP {identity[:12]}, the one in use is {clip_identity[:12]}: their embeddings have "
            f"nothing in common; use the CLIP it was trained with, or delete {where} and run `make train`"
        )
    load_strictly(network, where / WEIGHTS)
    return Trained(kind, network.eval().requires_grad_(False), process, precision, identity, config)


def build(config: Mapping[str, Any]) -> nn.Module:
    """The untrained network that a model's config describes."""
    clip = ClipShape(**config["clip"])
    if config["kind"] == "prior":
        return Prior(PriorArchitecture(**config["architecture"]), clip)
    return Decoder(DecoderArchitecture(**config["architecture"]), clip, use_clip=config["kind"] == "decoder")


def load_strictly(network: nn.Module, path: Path) -> None:
    """Load safetensors whose names and shapes are exactly the network's. Raises UserError saying what differs."""
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {error}; train the model again") from None
    expected = network.state_dict()
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise UserError(
            f"{path} does not fit its config: {len(missing)} tensors missing ({', '.join(missing[:3]) or '-'}), "
            f"{len(extra)} unknown ({', '.join(extra[:3]) or '-'})"
        )
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, its config describes {tuple(expected[name].shape)}"
            )
    network.load_state_dict(found, strict=True)
