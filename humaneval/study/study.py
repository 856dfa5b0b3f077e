"""A study as its readers see it: a fixed, hashed set of questions and their images, the artifact `humaneval/study/`.

study.json   what is asked: questions, wording, images with their sha256; names no system. Its sha256 is the study's hash
key.json     which image is whose; study.json commits to it by its sha256. Only assignment and results read it
images/      one PNG an image, under opaque names
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data.pipeline.artifacts import Artifact, read_json, sha256_file
from data.pipeline.errors import Code, UserError
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from humaneval.settings import KINDS

FOLDER = "humaneval/study"
BUILD = "python -m humaneval build"
FORMAT = 1


@dataclass(frozen=True)
class Question:
    """What a rater is asked. `images` are tokens in an order that means nothing; `caption` is None where it is not shown."""

    id: str
    kind: str
    caption: str | None
    images: tuple[str, str]


class Study:
    """A complete study, read only. Raises UserError when it does not exist or is of a format that this code does not know."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact.require(BUILD)
        self.hash = sha256_file(artifact.folder / "study.json")
        content = read_json(artifact.folder / "study.json", "study")
        if content["format"] != FORMAT:
            raise UserError(
                f"{artifact.folder}/study.json has format {content['format']}, this version reads {FORMAT}; build the study again",
                Code.OTHER_VERSION,
            )
        self.wording: Mapping[str, Any] = content["wording"]
        self.files: Mapping[str, Mapping[str, Any]] = content["images"]
        self.questions = {
            q["id"]: Question(q["id"], q["kind"], q["caption"], (q["images"][0], q["images"][1]))
            for q in content["questions"]
        }
        self._key_sha256 = content["key_sha256"]

    @classmethod
    def of(cls, run: Run) -> "Study":
        """The run's, for asking raters. Raises UserError where it is not there, or is stale: its images are others today."""
        return cls(Lineage(run).require(FOLDER, BUILD))

    @property
    def kinds(self) -> list[str]:
        """Kinds of question that the study asks, in the order in which a rater meets them."""
        asked = {question.kind for question in self.questions.values()}
        return [kind for kind in KINDS if kind in asked]

    @cached_property
    def key(self) -> Mapping[str, Any]:
        """The answer key. Raises UserError when it is not the one that study.json commits to."""
        path = self.artifact.folder / "key.json"
        key: Mapping[str, Any] = read_json(path, "answer key")
        if sha256_file(path) != self._key_sha256:
            raise UserError(
                f"{path} is not this study's answer key; delete {self.artifact.folder} and build the study again",
                Code.FOREIGN,
            )
        return key

    @property
    def systems(self) -> tuple[str, str]:
        """Labels of system a and system b."""
        return self.key["systems"]["a"]["label"], self.key["systems"]["b"]["label"]

    def arm(self, token: str) -> str:
        """ "a" or "b": whose image this is."""
        arm: str = self.key["images"][token]
        return arm

    def image(self, token: str) -> bytes:
        """The file's bytes, checked against the study. Raises UserError for a damaged file, KeyError for a foreign token."""
        expected = self.files[token]["sha256"]
        path = self.artifact.folder / "images" / f"{token}.png"
        content = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != expected:
            raise UserError(
                f"{path} is missing or damaged; delete {self.artifact.folder} and build the study again", Code.DAMAGED
            )
        return content
