"""From ratings to win rates with intervals: `humaneval/results.json`, and the tidy ratings beside it as Parquet.

People and simulated raters never share a row of results.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.pipeline.artifacts import publish_bytes, publish_json, read_json, sha256_file
from data.pipeline.errors import Code, UserError
from data.pipeline.lineage import Lineage
from data.pipeline.run import Run
from humaneval.rating.database import database_url, people_have_rated
from humaneval.rating.simulate import DISCLAIMER
from humaneval.rating.store import Rating
from humaneval.settings import HumanevalSettings
from humaneval.statistics.clustered import two_way_clustered_interval
from humaneval.statistics.rates import (
    TIE,
    normal_interval,
    three_way_shares,
    wilson_interval,
    win_rate,
    win_rate_without_ties,
)
from humaneval.study.study import FOLDER, Study

CONFIDENCE = 0.95
OUTCOMES = ("win", "tie", "loss")  # of system a
SCORE = {"win": 1.0, "tie": TIE, "loss": 0.0}
RESULTS = "humaneval/results.json"
RATINGS = "humaneval/ratings.parquet"


def tidy_ratings(study: Study, ratings: Sequence[Rating]) -> list[dict[str, Any]]:
    """One row an answer, unblinded: systems left and right, `outcome` for system a (win, tie, loss)."""
    rows = []
    label = dict(zip("ab", study.systems, strict=True))
    for rating in ratings:
        arms = {"left": study.arm(rating.left_image), "right": study.arm(rating.right_image)}
        outcome = "tie" if rating.answer == "not_sure" else "win" if arms[rating.answer] == "a" else "loss"
        systems = {"left_system": label[arms["left"]], "right_system": label[arms["right"]]}
        question = {
            "study": study.hash,
            "kind": study.questions[rating.question].kind,
            "prompt_id": study.key["prompts"][rating.question],
        }
        who = {"rater": rating.rater if rating.simulated else _published_id(rating.rater)}
        rows.append(asdict(rating) | who | question | systems | {"outcome": outcome})
    return rows


def _published_id(rater: str) -> str:
    """A rater's token lets its holder go on rating, so results carry its hash."""
    return hashlib.sha256(rater.encode()).hexdigest()[:16]


def summarise(study: Study, ratings: Sequence[Rating]) -> dict[str, Any]:
    """The content of results.json: one row per kind of question and kind of rater. Raises UserError without ratings."""
    tidy = tidy_ratings(study, ratings)
    if not tidy:
        raise UserError(
            "nobody has rated this study yet; run `make rate` (python -m dashboards rate), or python -m humaneval simulate",
            Code.MISSING,
        )
    rows = []
    tidy.sort(key=lambda row: (row["simulated"], study.kinds.index(row["kind"])))
    for (simulated, kind), group in groupby(tidy, key=lambda row: (row["simulated"], row["kind"])):
        rows.append({"question": kind, "simulated": simulated} | _row(study, list(group)))
    simulated = any(row["simulated"] for row in rows)
    return {
        "simulated": simulated,
        "note": f"{DISCLAIMER} (rows with simulated = true)" if simulated else None,
        "study": {
            "hash": study.hash,
            "consent_version": study.wording["consent_version"],
            "questions": Counter(question.kind for question in study.questions.values()),
        },
        "confidence": CONFIDENCE,
        "questions": rows,
    }


def _row(study: Study, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    outcomes = Counter(answer["outcome"] for answer in answers)
    wins, ties, losses = (outcomes[outcome] for outcome in OUTCOMES)
    n, rate = len(answers), win_rate(wins, ties, losses)
    raters, questions = ([answer[column] for answer in answers] for column in ("rater", "question"))
    clustered = two_way_clustered_interval(
        [SCORE[answer["outcome"]] for answer in answers], questions, raters, CONFIDENCE
    )
    normal, wilson = normal_interval(rate, n, CONFIDENCE), wilson_interval(rate, n, CONFIDENCE)
    left = sum(answer["answer"] == "left" for answer in answers)
    return {
        "system_a": study.systems[0], "system_b": study.systems[1],
        "n": n, "raters": len(set(raters)), "questions_rated": len(set(questions)),
        "wins": wins, "ties": ties, "losses": losses,
        "win_rate": rate, "win_rate_ties_dropped": win_rate_without_ties(wins, losses),
        "shares": dict(zip(OUTCOMES, three_way_shares(wins, ties, losses), strict=True)),
        "interval": "two-way clustered", "lo": clustered and clustered.lo, "hi": clustered and clustered.hi,
        "normal_lo": normal.lo, "normal_hi": normal.hi, "wilson_lo": wilson.lo, "wilson_hi": wilson.hi,
        "left_share": left / (n - ties) if n > ties else None,
        # How long a program took means nothing.
        "median_response_seconds": None if answers[0]["simulated"] else median(a["response_seconds"] for a in answers),
    }  # fmt: skip


def write_results(run: Run, study: Study, ratings: Sequence[Rating]) -> tuple[Path, Path]:
    """Publish results.json and ratings.parquet; returns their paths."""
    summary = summarise(study, ratings)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(tidy_ratings(study, ratings)), buffer)
    publish_bytes(run.folder / RATINGS, buffer.getvalue())
    publish_json(run.folder / RESULTS, summary)
    return run.folder / RESULTS, run.folder / RATINGS


def open_rated(run: Run) -> tuple[Study, str | None]:
    """The study whose results are asked for, and what a reader must know of it: one that people have rated stays readable when its
    images are others today. Raises UserError where it is not there, or is stale and no person has rated it."""
    why, artifact = Lineage(run).why_stale(FOLDER), run.artifact(FOLDER)
    if why is None or not artifact.is_complete():
        return Study.of(run), None
    study = Study(artifact)
    if not people_have_rated(database_url(run, run.config[HumanevalSettings]), study.hash):
        return Study.of(run), None
    return study, f"note: people rated study {study.hash[:12]}, which is stale by now ({why})"


def set_aside(run: Run) -> list[tuple[Path, Path]]:
    """Rename the results that stand, so that nothing takes them for those of today's study: (old path, new path) of each file."""
    path = run.folder / RESULTS
    if not path.exists():
        return []
    study = str((read_json(path, "results").get("study") or {}).get("hash"))[:12]
    standing = [old for old in (path, run.folder / RATINGS) if old.exists()]
    moved = [(old, old.with_stem(f"{old.stem}-{study}")) for old in standing]
    for old, new in moved:
        old.replace(new)
    return moved


def read_results(run: Run) -> dict[str, Any]:
    """results.json. Raises UserError naming the command that makes it."""
    path = run.folder / RESULTS
    if not path.exists():
        raise UserError(f"{path} does not exist; run `python -m humaneval results` first", Code.MISSING)
    results: dict[str, Any] = read_json(path, "results")
    return results


def are_of_this_study(run: Run, results: dict[str, Any]) -> bool:
    """Whether results are of the study that stands in the run."""
    study = run.folder / FOLDER / "study.json"
    return study.is_file() and results["study"]["hash"] == sha256_file(study)


def results_table(summary: dict[str, Any]) -> list[dict[str, str]]:
    """Rows to print: percentages with their intervals, `simulated` spelled out."""
    return [
        {
            "question": row["question"].replace("_", " "),
            "raters": f"{row['raters']} {_who(row)}",
            "n": str(row["n"]),
            f"{row['system_a']} wins": f"{100 * row['win_rate']:.1f}%",
            "95% two-way clustered": _percent(row["lo"], row["hi"]),
            "95% normal (paper)": _percent(row["normal_lo"], row["normal_hi"]),
            "win / not sure / loss": f"{row['wins']} / {row['ties']} / {row['losses']}",
        }
        for row in summary["questions"]
    ]


def _who(row: dict[str, Any]) -> str:
    return "simulated" if row["simulated"] else "person" if row["raters"] == 1 else "people"


def _percent(lo: float | None, hi: float | None) -> str:
    return "needs 2 raters, 2 questions" if lo is None or hi is None else f"{100 * lo:.1f} to {100 * hi:.1f}"
