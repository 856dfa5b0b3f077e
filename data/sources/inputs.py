"""The input files that a setting names: one file, a folder of them, or a pattern."""

import glob
from collections.abc import Callable
from pathlib import Path

from data.pipeline.errors import UserError

_PATTERN = frozenset("*?[")


def find_files(
    given: str, setting: str, is_wanted: Callable[[str], bool], endings: str, follow_links: bool
) -> tuple[Path, list[str]]:
    """The folder that holds them all, and their names relative to it, in order of name.

    Raises UserError, naming the setting, when nothing is there, when a named file has another ending than `endings` says, and, without
    `follow_links`, when a link leads out of the folder.
    """
    path = Path(given)
    if path.is_dir():
        root = path.resolve()
        # Dot-files are leftovers of tools (.ipynb_checkpoints, a download's temporary file), never input.
        found = [p for p in root.rglob("*") if is_wanted(p.name) and p.is_file() and not _is_hidden(p, root)]
        if not found:
            raise UserError(
                f"{setting}: {path} holds no file that ends in {endings}; give the folder, file or pattern that does"
            )
    elif path.exists() or not _PATTERN & set(given):
        if not is_wanted(path.name):
            raise UserError(f"{setting}: {path} ends in {''.join(path.suffixes[-2:])!r}; readable are {endings}")
        if not path.exists():
            raise UserError(f"{setting}: cannot read {path}: No such file or directory")
        root = path.parent.resolve()
        found = [root / path.name]
    else:
        root, found = _matching(path, setting, is_wanted, endings)
    for file in found:
        if not follow_links and not file.resolve().is_relative_to(root):
            raise UserError(
                f"{setting}: {file} is a link that leads out of {root}; give the folder where the files are"
            )
    return root, sorted(p.relative_to(root).as_posix() for p in found)


def _matching(pattern: Path, setting: str, is_wanted: Callable[[str], bool], endings: str) -> tuple[Path, list[Path]]:
    fixed = _fixed_part(pattern)
    root = fixed.resolve()
    names = glob.glob(str(pattern.relative_to(fixed)), root_dir=root, recursive=True)
    found = [root / name for name in names if (root / name).is_file()]
    odd = next((p for p in found if not is_wanted(p.name)), None)
    if odd is not None:
        raise UserError(f"{setting}: the pattern {pattern} matches {odd}; readable are {endings}")
    if not found:
        raise UserError(f"{setting}: no file matches {pattern}")
    return root, found


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _fixed_part(pattern: Path) -> Path:
    """The folders of a pattern up to the first that is a pattern itself."""
    fixed = Path(pattern.anchor) if pattern.is_absolute() else Path(".")
    for part in pattern.relative_to(fixed).parts[:-1]:
        if _PATTERN & set(part):
            break
        fixed /= part
    return fixed
