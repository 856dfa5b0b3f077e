"""Evaluation images that stand in the training data, found anew from hashes, whatever a view decided about them."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.dataset.splits import EVALUATION
from data.pipeline.artifacts import Artifact
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from data.scores.duplicates import BASIC_COLUMNS, looks_of, stored_images
from data.scores.near import near_any_of
from data.views.reading import kept_pairs
from data.views.rules import LEAK
from data.views.settings import ViewsSettings

SHOWN = 20


@dataclass(frozen=True)
class Leak:
    """A training image that the view keeps, and the evaluation image whose bytes it has or (`by` = "near") that it is near."""

    key: str
    eval_key: str
    split: str
    by: str


@dataclass(frozen=True)
class LeakReport:
    """What was compared: the training images that `view` keeps with all stored evaluation images. `dropped` counts training
    images that the view leaves out as copies of evaluation images."""

    view: str
    training: int
    evaluation: int
    dropped: int
    leaks: tuple[Leak, ...]

    def text(self) -> str:
        """For the terminal."""
        lines = [
            f"view {self.view}: {self.training:,} training images against {self.evaluation:,} evaluation images",
            f"dropped as copies of evaluation images: {self.dropped:,}",
            f"evaluation images that stand in the training data: {len(self.leaks):,} training copies",
        ]
        lines += [f"  {leak.key} is {leak.split} image {leak.eval_key} ({leak.by})" for leak in self.leaks[:SHOWN]]
        if len(self.leaks) > SHOWN:
            lines.append(f"  and {len(self.leaks) - SHOWN:,} more")
        return "\n".join(lines)


def verify_leaks(run: Run) -> LeakReport:
    """Compare the training images of the view `train`, or of `base` where there is no complete `train`, with val and test.

    By sha256 of original and stored bytes, and by perceptual hash and colours within `views.duplicates`. Reads the ledger and
    the hashes in `scores/basic`, not `scores/duplicates`. Raises UserError when there is no view or the scores are of another dataset.
    """
    settings = run.config[ViewsSettings].duplicates
    basic = Lineage(run).require("scores/basic")
    name = "train" if run.view("train").is_complete() else "base"
    view = Lineage(run).require(f"views/{name}")
    images = stored_images(run.dataset)
    evaluation = images.filter(pc.is_in(images["split"], pa.array(EVALUATION)))
    kept = kept_pairs(view)["key"].combine_chunks()
    training = images.filter(pc.and_(pc.equal(images["split"], "train"), pc.is_in(images["key"], kept)))
    pairs = pa.concat_tables(
        pq.read_table(basic.folder / f"{r.name}.parquet", columns=BASIC_COLUMNS) for r in basic.receipts()
    )
    by_near = near_any_of(looks_of(training, pairs), looks_of(evaluation, pairs), settings)
    by_bytes = _equal_bytes(training, evaluation)
    leaks = []
    for row in np.flatnonzero((by_bytes >= 0) | (by_near >= 0)):
        found = by_bytes[row] if by_bytes[row] >= 0 else by_near[row]
        eval_key, split = (evaluation[column][int(found)].as_py() for column in ("key", "split"))
        leaks.append(
            Leak(training["key"][int(row)].as_py(), eval_key, split, "bytes" if by_bytes[row] >= 0 else "near")
        )
    return LeakReport(name, len(training), len(evaluation), _dropped(view), tuple(leaks))


def _equal_bytes(training: pa.Table, evaluation: pa.Table) -> np.ndarray:
    """For every training image the first evaluation image with the same original or stored bytes, -1 for none."""
    found = np.full(len(training), len(evaluation))
    for column in ("original_sha256", "stored_sha256"):
        where = pc.index_in(training[column], evaluation[column].combine_chunks(), skip_nulls=True)
        found = np.minimum(found, pc.fill_null(where, len(evaluation)).to_numpy())
    return np.where(found == len(evaluation), -1, found)


def _dropped(view: Artifact) -> int:
    """Samples that the view leaves out as copies of evaluation images."""
    files = [view.folder / f"{receipt.name}.parquet" for receipt in view.receipts()]
    tables = [pq.read_table(file, columns=["key", "reason"], filters=[("reason", "=", LEAK)]) for file in files]
    return len(pc.unique(pa.concat_tables(tables)["key"])) if tables else 0
