"""The run folder: `runs/<name>/`, the artifacts made by one config."""

import tomllib
from pathlib import Path
from typing import Any

from data.artifacts import Artifact, publish_bytes
from data.config import SECTIONS, Config, section_model
from data.errors import UserError
from data.runner import flatten
from data.settings import RunSettings


class Run:
    """Paths of a run, and the guard that one folder holds what one config made."""

    def __init__(self, config: Config) -> None:
        settings = config[RunSettings]
        self.config = config
        self.seed = settings.seed
        # Absolute, because workers may have another working directory.
        self.folder = (Path(settings.folder) / settings.name).resolve()

    @classmethod
    def open(cls, config: Config) -> "Run":
        """The run folder for writing. Saves the resolved config; refuses a folder whose artifacts another config made."""
        run = cls(config)
        run._refuse_other_config()
        text = config.to_toml().encode()
        path = run.folder / "config.toml"
        if not path.exists() or path.read_bytes() != text:
            publish_bytes(path, text)
        return run

    def portable_config(self) -> dict[str, Any]:
        """The config for a worker elsewhere: the run folder by its absolute path."""
        config = self.config.to_dict()
        config["run"]["folder"] = str(self.folder.parent)
        return config

    def artifact(self, relative: str) -> Artifact:
        return Artifact(self.folder / relative)

    def view(self, name: str) -> Artifact:
        return self.artifact(f"views/{name}")

    def scores(self, name: str) -> Artifact:
        return self.artifact(f"scores/{name}")

    def model(self, name: str) -> Artifact:
        return self.artifact(f"models/{name}")

    @property
    def dataset(self) -> Artifact:
        return self.artifact("dataset")

    @property
    def clip(self) -> Artifact:
        return self.artifact("clip")

    @property
    def embeddings(self) -> Artifact:
        return self.artifact("embeddings")

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    def _refuse_other_config(self) -> None:
        path = self.folder / "config.toml"
        if not path.exists():
            return
        try:
            saved = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{path} is damaged: {error}; delete {self.folder} or use another run.name") from None
        now = self.config.to_dict()
        for name in SECTIONS:
            model = section_model(name)
            before, after = (_shaping(flatten(tables.get(name, {})), model.volatile) for tables in (saved, now))
            changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
            owned = (
                [o for o in model.owns if any((self.folder / o).glob("**/plan.json"))]
                if name != "run"
                else self._existing()
            )
            if changed and owned:
                key = changed[0]
                # The seed shapes everything; naming every artifact would bury the advice.
                delete = [str(self.folder)] if name == "run" else [str(self.folder / o) for o in owned]
                made = "the run" if name == "run" else ", ".join(owned)
                raise UserError(
                    f"{self.folder} belongs to another config: {name}.{key} was {before.get(key)!r} "
                    f"when {made} was made, {self.config.source} says {after.get(key)!r}; "
                    f"use another run.name, or delete {', '.join(delete)}"
                )

    def _existing(self) -> list[str]:
        return sorted({path.parent.relative_to(self.folder).as_posix() for path in self.folder.glob("**/plan.json")})


def _shaping(settings: dict[str, Any], volatile: tuple[str, ...]) -> dict[str, Any]:
    """Flattened settings without those that `volatile` names, singly or by their table."""
    return {k: v for k, v in settings.items() if not any(k == name or k.startswith(f"{name}.") for name in volatile)}
