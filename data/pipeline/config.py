"""One TOML file describes a whole run: reading it, overriding it, refusing what it should not say.

Each section is a frozen pydantic model that lives in the `settings.py` of the room it configures. The models import
nothing heavy, so that every front door checks the whole file before it starts hours of work.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from data.pipeline.errors import UserError
from data.pipeline.rooms import CHECKS, SECTIONS, load


class Settings(BaseModel):
    """Base of every settings model: frozen, strict types, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Section(Settings):
    """A top-level table of the TOML file.

    `owns` names the artifacts (relative to the run folder) that its settings shape; `volatile` fields say where and how
    to run, never what comes out, and may differ between two commands on one run folder.
    """

    section: ClassVar[str]
    owns: ClassVar[tuple[str, ...]] = ()
    volatile: ClassVar[tuple[str, ...]] = ()


S = TypeVar("S", bound=Section)
_PASSWORD = re.compile(r"(://[^/@\s:]*:)[^/\s]+@")


class Config:
    """A validated run configuration. `config[DatasetSettings]` gives a section as its typed model."""

    def __init__(self, sections: Mapping[str, Section], source: str) -> None:
        self._sections = dict(sections)
        self.source = source

    def __getitem__(self, model: type[S]) -> S:
        section = self._sections[model.section]
        assert isinstance(section, model)
        return section

    def __iter__(self) -> Any:
        return iter(self._sections.values())

    def at(self, dotted: str) -> Any:
        """The settings that `section.table` names, as they are; None where the section has no such table."""
        section, _, rest = dotted.partition(".")
        found: Any = self._sections[section]
        for name in rest.split(".") if rest else []:
            found = found.get(name) if isinstance(found, Mapping) else getattr(found, name, None)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Every section with every default filled in, JSON types only, `None` left out (TOML has no null)."""
        dumped = {name: s.model_dump(mode="json", exclude_none=True) for name, s in self._sections.items()}
        return {name: values for name, values in dumped.items() if values}

    def to_toml(self) -> str:
        return tomli_w.dumps(self.to_dict())


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Read and check a TOML file. `overrides` are `section.key=value` strings, values in TOML syntax (bare words are strings).

    Raises UserError in one line for a missing file, broken TOML, an unknown key (naming the nearest known one), a wrong type.
    """
    path = Path(path)
    if not path.is_file():
        near = ", ".join(sorted(str(p) for p in Path("configs").glob("*.toml"))) or "none in configs/"
        raise UserError(f"config file {path} does not exist; profiles here: {near}")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    for override in overrides:
        _apply_override(tables, override)
    return parse_config(tables, str(path))


def parse_config(tables: dict[str, Any], source: str) -> Config:
    """Validate already parsed tables; see `load_config`."""
    for name in tables:
        if name not in SECTIONS:
            raise UserError(f"{source}: unknown section [{name}]{_nearest(name, SECTIONS)}")
    sections: dict[str, Section] = {}
    for name in SECTIONS:
        model = section_model(name)
        try:
            # Through JSON, because pydantic's strict JSON mode takes arrays for tuples but no "3" for 3.
            sections[name] = model.model_validate_json(json.dumps(tables.get(name, {})), strict=True)
        except ValidationError as error:
            raise UserError(f"{source}: {_explain(error, name, model, name in tables)}") from None
        except TypeError as error:
            raise UserError(
                f"{source}: [{name}] holds a value that is not a number, string, boolean or list: {error}"
            ) from None
    config = Config(sections, source)
    for check in CHECKS:
        if problem := load(check)(config):
            raise UserError(f"{source}: {problem}")
    return config


def without_passwords(value: Any) -> Any:
    """The same JSON value, with `***` for the passwords of its URLs: for what is shown or given away."""
    if isinstance(value, Mapping):
        return {key: without_passwords(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_passwords(inner) for inner in value]
    return _PASSWORD.sub(r"\1***@", value) if isinstance(value, str) else value


def section_model(name: str) -> type[Section]:
    model: type[Section] = load(SECTIONS[name])
    return model


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, so that a difference can be named."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _apply_override(tables: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise UserError(f"override {override!r} is not of the form section.key=value, e.g. run.name=mine")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    table = tables
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise UserError(f"override {override!r}: {key} is a value, not a table")
    table[keys[-1]] = value


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else f"; known: {', '.join(sorted(known))}"


def _explain(error: ValidationError, section: str, model: type[Section], present: bool) -> str:
    """The first complaint in one line, with the dotted path that a user would write."""
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    dotted = ".".join([section, *path])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        return f"unknown key {dotted}{_nearest(path[-1], known) if known else ''}{more}"
    if first["type"] == "missing":
        return f"{dotted} is required{'' if present else f' (there is no section [{section}])'}{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{dotted}: {message}{more}"
    return f"{dotted}: {message[0].lower() + message[1:]}, got {first['input']!r}{more}"


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Field names of the (nested) model that `path` leads to; empty where it leads to no model."""
    current: type[BaseModel] | None = model
    for part in path:
        if current is None:
            return []
        if part in current.model_fields:
            current = _model_in(current.model_fields[part].annotation)
    return list(current.model_fields) if current else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The settings model inside `X`, `X | None`, `tuple[X, ...]` or `dict[str, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found:
            return found
    return None
