"""A dataset's life after its first download: retries, the breaker, removal, resharding, cards. All servers are loopback."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.compute as pc
import pytest

from data.dataset.breaker import SuccessCollapsed
from data.dataset.build import build_dataset
from data.dataset.ledger import check_counts, read_ledger
from data.dataset.plan import read_plan
from data.dataset.retries import frozen_retries
from data.dataset.shards import ShardReader
from data.fetch.reasons import Reason
from data.pipeline.errors import UserError
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.reports.funnel import funnel_rows, shards_text
from data.upkeep.retry import reasons_to_retry, retry
from tests.conftest import exit_code_with_fault, make_config, tree_bytes
from tests.data.fake_web import Web, picture

pytestmark = pytest.mark.timeout(60)


def config(folder: Path, web: Web, rows: int = 10, name: str = "t", **more: Any) -> Any:
    """A table of `rows` URLs of the server, two captions each, four a shard."""
    folder.mkdir(parents=True, exist_ok=True)
    urls = [f"http://{web.address}/{n}.png" for n in range(rows)]
    pairs = [(url, f"{word} picture {n} of noise") for n, url in enumerate(urls) for word in ("a", "one")]
    pd.DataFrame(pairs, columns=["url", "caption"]).to_csv(folder / "list.csv", index=False)
    dataset = {
        "table": {"path": str(folder / "list.csv"), "url": "url", "caption": "caption"},
        "samples_per_shard": 4,
        "image": {"size": 16, "format": "png"},
        "fetch": {"allow_private_hosts": True, "attempts": 1, "contact": "me@example.com", **more.pop("fetch", {})},
        **more,
    }
    return make_config(folder, run={"name": name, "folder": str(folder), "seed": 1}, dataset=dataset)


def stored_tree(run: Run) -> dict[str, bytes]:
    return {name: content for name, content in tree_bytes(run.dataset.folder).items() if name != "README.md"}


def again(run: Run, *reasons: str) -> str:
    return retry(run, reasons_to_retry(reasons), InProcess())


# --- retry ---


def test_a_retry_appends_and_touches_nothing(web: Web, tmp_path: Path) -> None:
    web.broken = {1: 500, 2: 503, 5: 404, 9: 429}
    run = Run.open(config(tmp_path, web))
    build_dataset(run, InProcess())
    before, splits = (
        stored_tree(run),
        dict(zip(*(read_plan(run.dataset.folder)[c].to_pylist() for c in ("key", "split")), strict=True)),
    )
    web.broken = {2: 503}
    web.asked.clear()
    assert again(run) == "retried 3 samples in 1 new shard, stored now: 2"
    assert set(web.asked) == {1, 2, 9}, "only what failed for a reason that may pass is asked for"
    after = stored_tree(run)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"manifest.json", "plan.json"}
    ledger = {row["key"]: row for row in read_ledger(run.dataset).to_pylist()}
    assert len(ledger) == 10 and ledger["000000001"]["reason"] is None
    assert (ledger["000000002"]["reason"], ledger["000000002"]["http_status"]) == ("http_5xx", 503)
    assert {key: row["split"] for key, row in ledger.items()} == splits
    shards = ShardReader(run.dataset)
    assert len(shards.keys()) == 8 and shards.meta("000000009")["captions"][0] == "a picture 9 of noise"
    assert run.dataset.verify() == []


def test_counts_of_a_retry_are_changes(web: Web, tmp_path: Path) -> None:
    web.broken = {1: 500, 2: 500, 5: 404}
    run = Run.open(config(tmp_path, web))
    build_dataset(run, InProcess())
    web.broken = {2: 404, 5: 404}
    again(run)
    receipt = run.dataset.receipt("00003")
    assert receipt is not None
    assert {name: n for name, n in receipt.counts.items() if n} == {
        "dropped_http_5xx_samples": -2, "dropped_http_5xx_pairs": -4, "dropped_http_4xx_samples": 1, "dropped_http_4xx_pairs": 2,
        "stored_samples": 1, "stored_pairs": 2,
    }  # fmt: skip
    counts = run.dataset.manifest()["counts"]
    check_counts(counts)
    assert (counts["planned_samples"], counts["stored_samples"], counts["dropped_http_4xx_samples"]) == (10, 8, 2)
    rows = [(r.reason, r.samples, r.pairs) for r in funnel_rows(run) if r.step in ("planned", "download", "stored")]
    assert rows == [(None, 10, 20), ("http_4xx", 2, 4), (None, 8, 16)]
    assert "00003" in shards_text(run).splitlines()[-1] and "http_5xx -2" in shards_text(run)


def test_retries_of_retries_and_named_reasons(web: Web, tmp_path: Path) -> None:
    web.broken = dict.fromkeys(range(6), 500) | {7: 404}
    run = Run.open(config(tmp_path, web))
    build_dataset(run, InProcess())
    web.broken = {0: 500, 7: 404}
    assert again(run) == "retried 6 samples in 2 new shards, stored now: 5"
    web.broken = {}
    assert again(run) == "retried 1 sample in 1 new shard, stored now: 1"
    assert [r.earlier for r in frozen_retries(run.dataset.folder)] == [("00000",), ("00001",), ("00003",)]
    assert again(run).startswith("nothing to retry")
    assert again(run, "http_4xx") == "retried 1 sample in 1 new shard, stored now: 1"
    assert len(ShardReader(run.dataset).keys()) == len(read_ledger(run.dataset)) == 10
    with pytest.raises(UserError, match="--reason nonsense is not a reason; reasons that can be retried: animated, "):
        again(run, "nonsense")
    with pytest.raises(UserError, match="--reason no_caption was never asked for"):
        again(run, "no_caption")


def test_a_retry_of_a_changed_list_is_refused(web: Web, tmp_path: Path) -> None:
    for broken in ({}, {1: 500}):
        web.broken = broken
        run = Run.open(config(tmp_path, web, name=f"t{len(broken)}"))
        build_dataset(run, InProcess())
        content = (tmp_path / "list.csv").read_text()
        (tmp_path / "list.csv").write_text(content + f"http://{web.address}/11.png,one more\n")
        with pytest.raises(UserError, match=r"the source has changed since: .*list.csv had"):
            again(run)
        (tmp_path / "list.csv").unlink()
        with pytest.raises(UserError, match=r"dataset.table.path: cannot read .*list.csv"):
            again(run)
        assert not frozen_retries(run.dataset.folder)


def test_views_scores_and_embeddings_append(web: Web, tmp_path: Path) -> None:
    from data.scores.basic import build_basic_scores
    from data.scores.duplicates import build_duplicates
    from data.views.build import build_base_view
    from embed.encoding.stage import build_embeddings
    from tests.conftest import save_tiny_clip

    save_tiny_clip(tmp_path / "tiny-clip")
    web.broken = {1: 500}
    run = Run.open(config(tmp_path, web))

    def all_stages() -> dict[str, dict[str, bytes]]:
        build_basic_scores(run, InProcess())
        build_duplicates(run, InProcess())
        build_base_view(run, InProcess())
        build_embeddings(run, InProcess())
        return {name: tree_bytes(run.folder / name) for name in ("scores/basic", "views/base", "embeddings")}

    build_dataset(run, InProcess())
    before = all_stages()
    web.broken = {}
    again(run)
    from data.reports.status import run_status

    states = {s.name: s.state for s in run_status(run)}
    assert (states["dataset"], states["views/base"], states["embeddings"]) == ("complete", "stale", "stale")
    after = all_stages()
    for name, files in before.items():
        changed = {file for file in files if files[file] != after[name][file]}
        assert not any(file.startswith("parts/") or file.endswith(".parquet") for file in changed), f"{name}: {changed}"
        assert after[name].keys() - files.keys() == {"00003.parquet", "parts/00003.json"}
    rows = funnel_rows(run)
    assert (rows[-1].step, rows[-1].samples) == ("view base", 10)


def start(folder: Path, address: str) -> None:
    class There:
        pass

    there: Any = There()
    there.address = address
    build_dataset(Run.open(config(folder, there)), InProcess())


def retry_there(folder: Path, address: str) -> None:
    class There:
        pass

    there: Any = There()
    there.address = address
    retry(Run.open(config(folder, there)), reasons_to_retry(()), InProcess())


@pytest.mark.parametrize(
    "fault", ["retries@00003", "plan", "shards@00003", "ledger@00004", "receipt@00003", "manifest"]
)
def test_a_killed_retry_is_finished_by_the_same_command(web: Web, tmp_path: Path, fault: str) -> None:
    web.broken = dict.fromkeys(range(6), 500)
    runs = [Run.open(config(tmp_path / name, web)) for name in ("whole", "killed")]
    for run in runs:
        build_dataset(run, InProcess())
    web.broken = {0: 404}
    again(runs[0])
    assert exit_code_with_fault(fault, retry_there, tmp_path / "killed", web.address) == -signal.SIGKILL
    again(runs[1])
    assert stored_tree(runs[1]) == stored_tree(runs[0])
    # `build` finishes a frozen retry as well, and a second build changes nothing.
    build_dataset(runs[1], InProcess())
    assert stored_tree(runs[1]) == stored_tree(runs[0])


# --- the breaker ---


def test_the_breaker_stops_inside_a_shard_and_over_shards(web: Web, tmp_path: Path) -> None:
    web.limit = 12
    fetch = {"breaker_window": 10, "breaker_min_success": 0.3, "threads": 1}
    inside = Run.open(config(tmp_path / "in", web, rows=60, samples_per_shard=60, fetch=fetch))
    with pytest.raises(SuccessCollapsed, match=r"only 2 of the last 10 downloads succeeded .* are http_5xx"):
        build_dataset(inside, InProcess())
    assert web.asked.total() < 25 and not inside.dataset.is_complete()
    web.asked.clear()
    over = Run.open(config(tmp_path / "over", web, rows=60, samples_per_shard=5, fetch=fetch))
    with pytest.raises(SuccessCollapsed, match="http_5xx"):
        build_dataset(over, InProcess())
    standing = [name for name in (f"{i:05d}" for i in range(12)) if over.dataset.receipt(name)]
    assert standing == ["00000", "00001", "00002", "00003"], "what is complete is kept, the rest was not asked for"
    assert web.asked.total() == 20
    web.limit = None
    build_dataset(over, InProcess())
    assert over.dataset.is_complete()


def test_a_retry_that_fails_again_is_finished(web: Web, tmp_path: Path) -> None:
    """Dead hosts stay dead: a breaker would stop every attempt to finish the retry."""
    web.broken = dict.fromkeys(range(12), 500)
    fetch = {"breaker_window": 12, "breaker_min_success": 0.08, "threads": 1}  # in order: the first twelve fail
    run = Run.open(config(tmp_path, web, rows=30, samples_per_shard=20, fetch=fetch))
    with pytest.raises(SuccessCollapsed):
        build_dataset(run, InProcess())
    web.broken = dict.fromkeys(range(11), 500)
    build_dataset(run, InProcess())
    assert again(run) == "retried 11 samples in 1 new shard, stored now: 0"
    assert run.dataset.is_complete()


def test_a_freeze_that_was_killed_leaves_nothing_behind(web: Web, tmp_path: Path) -> None:
    web.broken = {0: 404, **dict.fromkeys(range(1, 9), 500)}
    run = Run.open(config(tmp_path, web))
    build_dataset(run, InProcess())
    assert exit_code_with_fault("retries@00004", retry_there, tmp_path, web.address) == -signal.SIGKILL
    web.broken = {}
    assert again(run, "http_4xx").startswith("retried 1 sample in 1 new shard, ")
    assert run.dataset.verify() == []


def test_the_breaker_reaches_the_driver_from_a_worker(web: Web, tmp_path: Path, executor: Any) -> None:
    web.limit = 0
    fetch = {"breaker_window": 10, "threads": 2}
    run = Run.open(config(tmp_path, web, rows=40, samples_per_shard=20, fetch=fetch))
    with pytest.raises(SuccessCollapsed, match="stopped: only 0 of the last 10"):
        build_dataset(run, executor)
    assert SuccessCollapsed("x").exit_status != 0


# --- exclusion ---


def test_excluded_candidates_are_not_asked_for(web: Web, tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "urls").write_text(f"http://{web.address}/3.png\n")
    (tmp_path / "sums").write_text(hashlib.sha256(picture(4)).hexdigest() + "  # asked to be removed\n")
    exclude = {"urls": str(tmp_path / "urls"), "sha256": str(tmp_path / "sums")}
    run = Run.open(config(tmp_path, web, exclude=exclude))
    build_dataset(run, InProcess())
    reasons = {row["key"][-1]: row["reason"] for row in read_ledger(run.dataset).to_pylist() if row["reason"]}
    assert reasons == {"3": "excluded_url", "4": "excluded_sha256"}
    assert web.asked[3] == 0 and web.asked[4] == 1
    assert "000000004" not in ShardReader(run.dataset)


def test_images_near_an_excluded_hash_are_not_stored(web: Web, tmp_path: Path) -> None:
    from data.images.phash import phash64

    run = Run.open(config(tmp_path / "a", web))
    build_dataset(run, InProcess())
    value = phash64(ShardReader(run.dataset).image("000000006"))
    (tmp_path / "hashes").write_text(f"{value ^ 0b11:016x}\n")
    run = Run.open(config(tmp_path / "b", web, exclude={"phash": str(tmp_path / "hashes")}))
    build_dataset(run, InProcess())
    ledger = read_ledger(run.dataset)
    assert ledger.filter(pc.is_valid(ledger["reason"])).select(["key", "reason"]).to_pylist() == [
        {"key": "000000006", "reason": "excluded_phash"}
    ]


def test_the_hash_of_the_source_is_verified_when_asked(web: Web, tmp_path: Path) -> None:
    import hashlib

    made = config(tmp_path, web, rows=4)
    frame = pd.DataFrame(
        [(f"http://{web.address}/{n}.png", "a picture", hashlib.md5(picture(n if n else 9)).hexdigest()) for n in range(4)],
        columns=["url", "caption", "md5"],
    )  # fmt: skip
    frame.to_csv(tmp_path / "list.csv", index=False)
    tables = made.to_dict()
    tables["dataset"]["table"]["hash"] = "md5"
    tables["dataset"]["fetch"]["verify_hash"] = True
    run = Run.open(make_config(tmp_path, run=tables["run"], dataset=tables["dataset"]))
    build_dataset(run, InProcess())
    assert read_ledger(run.dataset)["reason"].to_pylist() == ["hash_mismatch", None, None, None]


def test_a_web_source_without_a_contact_is_warned_about(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_dataset(Run.open(config(tmp_path / "a", web, rows=1)), InProcess())
    assert "warning" not in capsys.readouterr().err
    build_dataset(Run.open(config(tmp_path / "b", web, rows=1, fetch={"contact": None})), InProcess())
    assert capsys.readouterr().err.count("warning: dataset.fetch.contact is not set") == 1


def test_the_hosts_file_and_the_log_are_volatile(web: Web, tmp_path: Path) -> None:
    web.broken = {1: 500}
    run = Run.open(config(tmp_path, web, rows=3, fetch={"attempts": 2}))
    build_dataset(run, InProcess())
    import pyarrow.parquet as pq

    log = pq.read_table(run.dataset.folder / "log" / "00000.parquet").to_pylist()
    assert [row["attempts"] for row in log] == [1, 2, 1]
    assert (run.dataset.folder / "log" / "hosts").exists()
    assert not any(
        name.startswith("log") for name in json.loads((run.dataset.folder / "manifest.json").read_text())["files"]
    )
    assert set(read_ledger(run.dataset).column_names).isdisjoint({"attempts", "detail", "seconds"})
    assert os.environ.get("UNCLIP_FAULT") is None and Reason.HTTP_5XX == "http_5xx"
