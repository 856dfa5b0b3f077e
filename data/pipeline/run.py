"""The run folder: `runs/<name>/`, the artifacts made by one config."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.pipeline.artifacts import Artifact, publish_bytes
from data.pipeline.config import Config, flatten, section_model
from data.pipeline.errors import Code, UserError
from data.pipeline.rooms import SECTIONS
from data.pipeline.settings import RunSettings

REMADE = "views"  # cheap: what this section shapes records its own settings, and is made again when they change


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

    def changes(self) -> list["Change"]:
        """Per section the first setting that is not what it was when artifacts were made that it shapes."""
        path = self.folder / "config.toml"
        if not path.exists():
            return []
        try:
            saved = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise UserError(
                f"{path} is damaged: {error}; delete {self.folder} or use another run.name", Code.DAMAGED
            ) from None
        now = self.config.to_dict()
        found = []
        for name in SECTIONS:
            if name == REMADE:
                continue
            model = section_model(name)
            before, after = (_shaping(flatten(tables.get(name, {})), model.volatile) for tables in (saved, now))
            changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
            # The seed shapes everything.
            owned = self._existing() if name == "run" else [o for o in model.owns if self._holds_artifact(o)]
            if changed and owned:
                key = changed[0]
                found.append(Change(name, key, before.get(key), after.get(key), tuple(owned)))
        return found

    def _refuse_other_config(self) -> None:
        for change in self.changes():
            raise UserError(f"{self.folder} belongs to another config: {self.explain(change)}", Code.OTHER_CONFIG)

    def explain(self, change: "Change") -> str:
        """What changed, and what to do."""
        whole = change.section == "run"  # naming every artifact would bury the advice
        made = "the run" if whole else ", ".join(change.owned)
        delete = [str(self.folder)] if whole else [str(self.folder / owned) for owned in change.owned]
        return (
            f"{change.section}.{change.key} was {change.before!r} when {made} was made, {self.config.source} says "
            f"{change.after!r}; use another run.name, or delete {', '.join(delete)}"
        )

    def _holds_artifact(self, relative: str) -> bool:
        return any((self.folder / relative).glob("**/plan.json"))

    def _existing(self) -> list[str]:
        return sorted({path.parent.relative_to(self.folder).as_posix() for path in self.folder.glob("**/plan.json")})


@dataclass(frozen=True)
class Change:
    """A setting whose artifacts, `owned`, were made with another value than the config has now."""

    section: str
    key: str
    before: Any
    after: Any
    owned: tuple[str, ...]


def _shaping(settings: dict[str, Any], volatile: tuple[str, ...]) -> dict[str, Any]:
    """Flattened settings without those that `volatile` names, singly or by their table."""
    return {k: v for k, v in settings.items() if not any(k == name or k.startswith(f"{name}.") for name in volatile)}
