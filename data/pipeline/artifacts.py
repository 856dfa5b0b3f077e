"""Artifacts: folders that are either complete and verifiable, or visibly not.

    plan.json            first: settings, stage version, ordered parts with the digest of each part's inputs
    parts/00042.json     receipt, last of its part: files, sizes, sha256, counts; files without a receipt are garbage
    manifest.json        last of the artifact: the receipts assembled; its presence means complete
    log/, provenance.json, README.md    volatile facts (times, hosts, versions, a card): outside every digest

Everything but the volatile facts is a pure function of settings, stage version and inputs, byte for byte.
"""

import contextlib
import errno
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.pipeline.errors import Code, DiskFull, UserError

VOLATILE = "log"
# Of the day they were made: dates, hosts, addresses (a dataset card).
VOLATILE_FILES = ("provenance.json", "README.md")


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value: sorted keys, no spaces, UTF-8, a newline at the end. NaN is refused."""
    return (
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    )


def fingerprint(value: Any) -> str:
    """sha256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a rerun after a crash, sees the old bytes or the new ones and nothing between."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_path(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise_if_full(error, path)
        raise


def publish_json(path: Path, value: Any) -> None:
    publish_bytes(path, canonical_json(value))


def raise_if_full(error: OSError, path: Path) -> None:
    """Turn a full disk into its one clear line; other errors pass."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DiskFull(
            f"no space left while writing {path}; what is complete is kept: free some space and run the same command again"
        ) from error


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file of ours. Raises UserError naming the file when it is missing or damaged."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{what} is missing: {path}", Code.MISSING) from None
    except ValueError as error:
        raise UserError(
            f"{what} is damaged: {path}: {error}; delete it and run the stage again", Code.DAMAGED
        ) from None


@dataclass(frozen=True)
class Receipt:
    """Proof that a part is complete. `files` maps a path relative to the artifact to its bytes and sha256."""

    name: str
    fingerprint: str
    files: Mapping[str, Mapping[str, Any]]
    counts: Mapping[str, int]

    @classmethod
    def read(cls, path: Path) -> "Receipt":
        content = read_json(path, "receipt")
        try:
            return cls(**content)
        except TypeError:
            raise UserError(f"receipt is damaged: {path}; delete it and run the stage again", Code.DAMAGED) from None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def sum_counts(receipts: list[Receipt]) -> dict[str, int]:
    total: dict[str, int] = {}
    for receipt in receipts:
        for name, value in receipt.counts.items():
            total[name] = total.get(name, 0) + value
    return dict(sorted(total.items()))


class Artifact:
    """A folder holding a stage's whole output. Reading never changes it."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    @property
    def manifest_path(self) -> Path:
        return self.folder / "manifest.json"

    def is_complete(self) -> bool:
        return self.manifest_path.is_file()

    def require(self, make: str) -> "Artifact":
        """Return itself if complete, else raise UserError naming the command that makes it."""
        if not self.is_complete():
            state = "is not complete" if self.folder.exists() else "does not exist"
            raise UserError(f"{self.folder} {state}; run `{make}` first", Code.MISSING)
        return self

    def manifest(self) -> dict[str, Any]:
        manifest: dict[str, Any] = read_json(self.manifest_path, "manifest")
        return manifest

    def plan_json(self) -> dict[str, Any] | None:
        path = self.folder / "plan.json"
        return read_json(path, "plan") if path.exists() else None

    def digest(self) -> str:
        """sha256 of the manifest, and through it of every file: the identity by which later stages refer to this artifact."""
        return sha256_file(self.manifest_path)

    def settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = self.manifest()["settings"]
        return settings

    def receipts(self) -> list[Receipt]:
        """Receipts in the manifest's order."""
        return [Receipt(**part) for part in self.manifest()["parts"]]

    def receipt(self, name: str) -> Receipt | None:
        """The receipt of a part of an artifact that may be incomplete."""
        path = self.folder / "parts" / f"{name}.json"
        return Receipt.read(path) if path.exists() else None

    def part_digest(self, name: str) -> str | None:
        """Of the files of a standing part: the identity by which later parts refer to it. None where the part does not stand."""
        receipt = self.receipt(name)
        return None if receipt is None else fingerprint(receipt.files)

    def part_digests(self) -> dict[str, str]:
        """Name -> digest of every part, in the manifest's order."""
        return {receipt.name: fingerprint(receipt.files) for receipt in self.receipts()}

    def inputs(self) -> dict[str, list[tuple[str, str]]]:
        """Part -> (of, digest) of everything that it was planned from; empty where nothing was planned.

        Raises UserError for a plan of a version of the toolkit that did not name its inputs."""
        plan = self.plan_json() or {"parts": []}
        if any(isinstance(part["inputs"], Mapping) for part in plan["parts"]):
            raise UserError(
                f"{self.folder} was made by an earlier version of the toolkit, which recorded inputs in another form; "
                f"delete it and make it again, or use another run.name", Code.OTHER_VERSION,
            )  # fmt: skip
        return {part["name"]: [(one["of"], one["digest"]) for one in part["inputs"]] for part in plan["parts"]}

    def verify(self) -> list[str]:
        """Compare every file with its recorded size and sha256. Returns what is wrong, one line each; empty when all is well."""
        if not self.is_complete():
            return [f"{self.folder}: no manifest, the artifact is not complete"]
        manifest = self.manifest()
        problems, known = [], {"plan.json", "manifest.json", *VOLATILE_FILES}
        recorded = dict(manifest["files"])
        for receipt in self.receipts():
            recorded |= receipt.files
            known.add(f"parts/{receipt.name}.json")
            found = self.receipt(receipt.name)
            if found is None or found != receipt:
                problems.append(
                    f"{self.folder}/parts/{receipt.name}.json: receipt {'missing' if found is None else 'differs from the manifest'}"
                )
        for relative, facts in recorded.items():
            path = self.folder / relative
            if not path.is_file():
                problems.append(f"{path}: missing")
            elif path.stat().st_size != facts["bytes"]:
                problems.append(f"{path}: {path.stat().st_size} bytes, recorded {facts['bytes']}")
            elif sha256_file(path) != facts["sha256"]:
                problems.append(f"{path}: content differs from its recorded sha256")
        for path in sorted(self.folder.rglob("*")):
            relative = path.relative_to(self.folder).as_posix()
            if path.is_file() and relative not in recorded and relative not in known and not is_volatile(relative):
                problems.append(f"{path}: not recorded in the manifest")
        return problems


def lost_file(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> Path | None:
    """The first of a receipt's or a manifest's files that is missing or of another size than recorded; None when all stand."""
    for relative, facts in files.items():
        path = folder / relative
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            return path
    return None


def is_volatile(relative: str) -> bool:
    return relative.split("/")[0] in (VOLATILE, "attempts", ".lock")


def file_facts(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
