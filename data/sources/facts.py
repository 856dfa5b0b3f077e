"""What identifies a source's content, and how two such descriptions differ, in words."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data.pipeline.artifacts import file_facts
from data.pipeline.errors import UserError


def facts_of(files: Iterable[tuple[str, Path]], setting: str) -> dict[str, Any]:
    """Name -> bytes and sha256 of every file. Raises UserError, naming the setting, when one cannot be read."""
    found = {}
    for name, path in files:
        try:
            found[name] = file_facts(path)
        except OSError as error:
            raise cannot_read(setting, path, error) from None
    return found


def cannot_read(setting: str, path: Path, error: BaseException) -> UserError:
    """One line for a file that the user named and that cannot be read."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else None
    why = why or next(iter(str(error).splitlines()), type(error).__name__)
    return UserError(f"{setting}: cannot read {path}: {why[:300]}")


def sizes_as_facts(sizes: Mapping[str, int]) -> dict[str, Any]:
    """Name -> bytes, for images that are too many to be read twice."""
    return {valid_name(name): {"bytes": size} for name, size in sizes.items()}


def valid_name(name: str) -> str:
    """A file's name as valid Unicode: bytes that are not UTF-8 as `\\xff`. Python holds them as surrogates, Parquet refuses those."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def describe_change(then: Any, now: Any, where: str = "") -> str:
    """The first difference between two JSON values of facts, and how many more there are."""
    found = list(_differences(then, now, where))
    assert found, "the facts are equal"
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return found[0] + more


def _differences(then: Any, now: Any, where: str) -> Iterable[str]:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        if "bytes" in then and "bytes" in now and any(then.get(n) != now.get(n) for n in ("bytes", "sha256")):
            yield from _file_difference(then, now, where)
            return
        for name in sorted(then.keys() | now.keys()):
            inner = f"{where}/{name}" if where else name
            if name not in now:
                yield f"{inner} is missing now"
            elif name not in then:
                yield f"{inner} is new"
            else:
                yield from _differences(then[name], now[name], inner)
    elif then != now:
        yield f"{where} was {then!r}, is {now!r}"


def _file_difference(then: Mapping[str, Any], now: Mapping[str, Any], where: str) -> Iterable[str]:
    if then["bytes"] != now["bytes"]:
        yield f"{where} had {then['bytes']} bytes, has {now['bytes']}"
    elif then.get("sha256") != now.get("sha256"):
        yield f"{where} has {now['bytes']} bytes as then, but sha256 {then['sha256'][:12]} became {now['sha256'][:12]}"
