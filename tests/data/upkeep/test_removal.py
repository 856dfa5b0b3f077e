"""Removal, resharding, looking at samples, and the dataset card."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.__main__ import COMMANDS
from data.dataset.build import build_dataset
from data.dataset.ledger import read_ledger
from data.dataset.origin import is_resharded
from data.dataset.plan import read_plan
from data.dataset.shards import ShardReader, read_shard
from data.pipeline.artifacts import Artifact
from data.pipeline.cli import front_door
from data.pipeline.errors import UserError
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from data.pipeline.runner import run_stage
from data.pipeline.stage import Input, PartSpec, Stage
from data.pipeline.terminal import printable
from data.reports.card import escape, refresh_card
from data.reports.show import caption_lines, choose_keys, contact_sheet, read_shown, shown_text
from data.scores.basic import build_basic_scores
from data.scores.duplicates import build_duplicates
from data.upkeep.apply_removal import remove
from data.upkeep.reshard import reshard
from data.views.build import build_base_view, build_train_view
from data.views.reading import kept_pairs
from data.views.removal import Entry, parse_entry, read_entries, removed_keys, resolve
from tests.conftest import exit_code_with_fault, make_config, tree_bytes

HOSTILE = "a \x1b[31mred\x1b[0m \u202eevil | <b>cat</b> # `x`"


def picture(path: Path, n: int) -> None:
    """A smooth picture of its own, so that no two are near copies."""
    small = Image.fromarray(np.random.default_rng(n).integers(0, 256, (5, 5, 3), dtype=np.uint8))
    small.resize((40, 30), Image.Resampling.BICUBIC).save(path)


def config(folder: Path, name: str = "t", **more: Any) -> Any:
    """Nine pictures of three captions each, the last of one word, which the view base leaves out."""
    photos = folder / "photos"
    if not photos.exists():
        photos.mkdir(parents=True)
        for n in range(9):
            picture(photos / f"{n}.png", n)
        rows = [
            f'{n}.png,"{c}"' for n in range(9) for c in (f"the first caption of {n}", f"a second one of {n}", "word")
        ]
        rows[0] = f'0.png,"{HOSTILE}"'
        (photos / "captions.csv").write_text("file,caption\n" + "\n".join(rows) + "\n")
    dataset = {
        "folder": {"path": str(photos)}, "samples_per_shard": 4, "image": {"size": 32, "format": "png", "mode": "keep_ratio"},
        "split": {"val": 0.2, "test": 0.2}, **more,
    }  # fmt: skip
    views = {"base": {"min_caption_words": 2}}
    return make_config(folder, run={"name": name, "folder": str(folder), "seed": 1}, dataset=dataset, views=views)


def make(run: Run) -> Run:
    build_dataset(run, InProcess())
    build_basic_scores(run, InProcess())
    build_duplicates(run, InProcess())
    build_base_view(run, InProcess())
    build_train_view(run, InProcess())
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make(Run.open(config(tmp_path)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make(Run.open(config(tmp_path_factory.mktemp("whole"))))


# --- removal ---


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("000000042", "key:000000042"),
        ("AB" * 32, f"sha256:{'ab' * 32}"),
        ("https://Example.com:443/a b", "url:example.com/a b"),
        ("example.com", "domain:example.com"),
        ("*.example.com", "domain:example.com"),
        ("phash: 00FF00ff00FF00ff", "phash:00ff00ff00ff00ff"),
        ("key:0000000001", "key:0000000001"),
        ("url:http://h/x", "url:h/x"),
        ("phash:123", None),
        ("key:12", None),
        ("not a domain", None),
        ("url:ftp://h/x", None),
    ],
)
def test_entries_are_understood_or_refused(text: str, entry: str | None) -> None:
    found = parse_entry(text)
    assert (None if found is None else str(found)) == entry


def test_a_line_that_is_not_understood_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_text("# asked for on Monday\n\n000000001  # a comment\nhalf an entry\n")
    with pytest.raises(UserError, match=r"list, line 4: 'half an entry' is not understood; write one entry a line"):
        read_entries(path)
    path.write_text("# nothing\n")
    with pytest.raises(UserError, match="has no entry"):
        read_entries(path)
    with pytest.raises(UserError, match="cannot read .*nowhere: No such file"):
        read_entries(tmp_path / "nowhere")


def test_every_kind_of_entry_finds_its_samples(whole: Run) -> None:
    ledger = {row["key"]: row for row in read_ledger(whole.dataset).to_pylist()}
    table = pq.read_table(whole.scores("basic").folder / "00001.parquet", columns=["key", "phash"]).to_pylist()
    near = next(row["phash"] for row in table if row["key"] == "000000005") ^ 0b101
    entries = [
        Entry("key", "000000003"), Entry("sha256", ledger["000000004"]["original_sha256"]),
        Entry("sha256", ledger["000000007"]["stored_sha256"]), Entry("phash", f"{near:016x}"), Entry("key", "000000777"),
    ]  # fmt: skip
    found = resolve(whole, entries, 3)
    assert [found[entry] for entry in entries] == [["000000003"], ["000000004"], ["000000007"], ["000000005"], []]
    assert resolve(whole, [entries[3]], 1) == {entries[3]: []}


def test_urls_and_domains_find_their_samples(tmp_path: Path) -> None:
    from tests.data.made_dataset import Stored, encoded, make_dataset, photo

    run = Run.open(make_config(tmp_path))
    urls = ["http://a.example.com/1", "https://b.org/1#x", "http://notexample.com/1", "http://EXAMPLE.com:80/2"]
    make_dataset(run, [[Stored(f"{i:09d}", encoded(photo(i)), url=url) for i, url in enumerate(urls)]])
    lines = {"example.com": [0, 3], "https://a.example.com/1": [0], "http://b.org/1": [1], "org": [1], "c.org": []}
    for text, rows in lines.items():
        entry = parse_entry(text)
        assert entry is not None
        assert resolve(run, [entry], 3) == {entry: [f"{row:09d}" for row in rows]}, text


def trained(run: Run, name: str, view: str) -> Artifact:
    """A stand-in for something made from a view, as training records it."""
    part = PartSpec("model", (Input(f"views/{view}", run.view(view).digest()),))
    return run_stage(Stage(name, 1, run.folder / name, {}, [part], write_nothing), InProcess())


def write_nothing(spec: PartSpec, attempt: Path) -> dict[str, int]:
    return {}


def test_removal_leaves_views_and_names_what_saw_the_samples(run: Run) -> None:
    model = trained(run, "models/prior", "train")
    part = PartSpec("00000", (Input("models/prior", model.digest()),))
    run_stage(Stage("samples", 1, run.folder / "generations" / "unclip" / "x", {}, [part], write_nothing), InProcess())
    before = tree_bytes(run.dataset.folder)
    lines = remove(run, {Entry("key", "000000002"): ["000000002"], Entry("domain", "x.org"): []}, InProcess())
    text = "\n".join(lines)
    assert tree_bytes(run.dataset.folder) == before, "a removal edits no artifact"
    assert removed_keys(run) == {"000000002"}
    for name in ("base", "train"):
        assert "000000002" not in kept_pairs(run.view(name))["key"].to_pylist()
        assert f"view {name} made again: keeps 16 pairs, 3 left out as removed" in text
    assert "1 entry without a candidate so far: domain:x.org" in text
    assert "1 key named, 1 of them newly removed, 1 with a stored image; 1 removed in all" in text
    assert "dataset: its shards hold the bytes of 1 of them" in text
    assert "scores/basic: holds rows of 1 of them, in part 00000" in text
    assert "models/prior: was made from a view that kept 1 of them" in text
    assert "generations/unclip/x: was made with models/prior, which saw them" in text
    only_other_parts = [run.view("base").receipt(f"{i:05d}") for i in range(3)]
    assert all(receipt is not None for receipt in only_other_parts)
    # The view that the model saw is gone now: whatever was made from it is named for any further key.
    assert "models/prior: may have seen them" in "\n".join(
        remove(run, {Entry("key", "000000003"): ["000000003"]}, InProcess())
    )
    assert len(removed_keys(run)) == 2


def test_what_no_view_kept_was_not_seen_by_models(run: Run) -> None:
    remove(run, {Entry("key", "000000002"): ["000000002"]}, InProcess())
    trained(run, "models/prior", "train")
    text = "\n".join(remove(run, {Entry("sha256", "0" * 64): ["000000002"]}, InProcess()))
    assert "0 of them newly removed" in text and "models/prior" not in text and "dataset: its shards" in text


def test_a_removed_sample_is_not_retried(run: Run, tmp_path: Path) -> None:
    from data.upkeep.retry import reasons_to_retry, retry

    photos = tmp_path / "photos"
    (photos / "5.png").rename(photos / "5.gone")
    other = Run.open(config(tmp_path, "other"))
    build_dataset(other, InProcess())
    remove(other, {Entry("key", "000000005"): ["000000005"]}, InProcess())
    assert retry(other, reasons_to_retry(["file_missing"]), InProcess()).startswith("nothing to retry")


# --- resharding ---


def test_a_reshard_keeps_keys_splits_and_bytes(run: Run) -> None:
    remove(run, {Entry("key", "000000002"): ["000000002"]}, InProcess())
    target = reshard(run, "base", "clean", InProcess())
    ours, theirs = ShardReader(target.dataset), ShardReader(run.dataset)
    assert ours.keys() == [f"{n:09d}" for n in range(9) if n != 2]
    for key in ours.keys():  # noqa: SIM118
        assert ours.image_bytes(key) == theirs.image_bytes(key)
        before, now = theirs.meta(key), ours.meta(key)
        assert now.pop("captions") == before.pop("captions")[:2] and now == before
    assert [len(list(read_shard(path))) for path in sorted(target.dataset.folder.glob("shards/*.tar"))] == [4, 4]
    rows = {row["key"]: row for row in read_ledger(run.dataset).to_pylist()}
    for row in read_ledger(target.dataset).to_pylist():
        assert row == rows[row["key"]] | {"n_captions": 2}
    counts = target.dataset.manifest()["counts"]
    assert (counts["planned_samples"], counts["stored_samples"], counts["stored_pairs"]) == (8, 8, 16)
    assert target.dataset.verify() == []
    removed = ShardReader(run.dataset).image_bytes("000000002")
    assert all(removed not in path.read_bytes() for path in target.dataset.folder.rglob("*") if path.is_file())
    assert is_resharded(target.dataset) and not is_resharded(run.dataset)


def test_a_resharded_run_goes_on_as_any_other(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = reshard(run, "base", "clean", InProcess())
    before = tree_bytes(target.dataset.folder)
    toml = tmp_path / "c.toml"
    toml.write_text(run.config.to_toml())
    for command in ("build", "scores", "view", "funnel", "retry-failed", "status", "verify"):
        assert front_door("data", "", COMMANDS, [command, "--config", str(toml), "run.name=clean"]) == 0, command
    out = capsys.readouterr().out
    assert out.count("was resharded from the view base") == 3, "build, retry-failed and status say so"
    assert tree_bytes(target.dataset.folder) == before
    assert kept_pairs(target.view("base")).num_rows == 18


def test_captions_that_go_take_what_they_name_along(tmp_path: Path) -> None:
    """The synthetic world records, caption by caption, what each names."""
    views = {"base": {"rules": [{"scores": "basic", "column": "caption_words", "min": 9}]}}
    run = make(Run.open(make_config(tmp_path, views=views)))
    target = reshard(run, "base", "clean", InProcess())
    shorter = 0
    for key in ShardReader(target.dataset).keys():  # noqa: SIM118
        before, now = ShardReader(run.dataset).meta(key), ShardReader(target.dataset).meta(key)
        named = dict(zip(before["captions"], before["attributes"]["named"], strict=True))
        assert now["attributes"]["named"] == [named[caption] for caption in now["captions"]]
        shorter += len(now["captions"]) < len(before["captions"])
    assert shorter > 0


def start_reshard(folder: Path) -> None:
    reshard(Run(config(folder)), "base", "clean", InProcess())


@pytest.mark.parametrize("fault", ["source", "plan", "shards@00001", "receipt@00000", "manifest"])
def test_a_killed_reshard_goes_on(whole: Run, capsys: pytest.CaptureFixture[str], fault: str) -> None:
    folder = whole.folder.parent
    undisturbed = tree_bytes(reshard(whole, "base", "undisturbed", InProcess()).dataset.folder)
    import shutil

    shutil.rmtree(folder / "clean", ignore_errors=True)
    assert exit_code_with_fault(fault, start_reshard, folder) == -signal.SIGKILL
    target = Run(config(folder, "clean"))
    with pytest.raises(UserError, match="python -m data reshard --to clean"):
        build_dataset(target, InProcess())
    # What the advice of the front door says is all that is needed.
    for command in ("build", "retry-failed"):
        if command == "retry-failed" and target.dataset.plan_json() is None:
            continue
        assert (
            front_door("data", "", COMMANDS, [command, "--config", str(folder / "t" / "config.toml"), "run.name=clean"])
            == 2
        )
        advice = capsys.readouterr().err.partition("`python -m data ")[2].partition("`")[0]
        assert advice == f"reshard --config {folder / 't' / 'config.toml'} --view base --to clean"
    assert front_door("data", "", COMMANDS, advice.split()) == 0
    assert tree_bytes(target.dataset.folder) == undisturbed


def test_a_reshard_refuses_what_would_mix(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--to t is this run itself"):
        reshard(run, "base", "t", InProcess())
    build_dataset(Run.open(config(tmp_path, "other")), InProcess())
    with pytest.raises(UserError, match="holds a downloaded dataset; choose another name"):
        reshard(run, "base", "other", InProcess())
    reshard(run, "base", "clean", InProcess())
    with pytest.raises(UserError, match="was resharded from another view"):
        reshard(run, "train", "clean", InProcess())
    (run.folder / "removed.parquet").unlink(missing_ok=True)
    from data.views.removal import record

    record(run, {Entry("key", "000000001"): ["000000001"]})
    with pytest.raises(UserError, match=r"views/base is stale .*removed since"):
        reshard(run, "base", "late", InProcess())


def test_a_view_that_keeps_nothing_is_not_written_out(run: Run, tmp_path: Path) -> None:
    strict = Run.open(make_config(tmp_path, **run.config.to_dict() | {"views": {"base": {"min_caption_words": 99}}}))
    build_base_view(strict, InProcess())
    with pytest.raises(UserError, match="the view base keeps nothing"):
        reshard(strict, "base", "clean", InProcess())
    assert not (tmp_path / "clean").exists()


# --- show ---


def test_a_contact_sheet_holds_the_images_and_their_captions(whole: Run) -> None:
    keys = choose_keys(whole, "base", None, 5, 0)
    assert keys == choose_keys(whole, "base", None, 5, 0) != choose_keys(whole, "base", None, 5, 1)
    samples = read_shown(whole, keys, "base", None)
    assert all(len(sample.captions) == 2 for sample in samples), (
        "captions that the view leaves out are not shown as kept"
    )
    sheet = contact_sheet(whole, samples)
    assert sheet.width >= 4 * 256 and sheet.height >= 2 * 256
    corner = np.asarray(sheet)[12:22, 12:22].astype(int)
    first = ShardReader(whole.dataset).image(keys[0]).astype(int)[:2, :2]
    assert abs(corner.mean(axis=(0, 1)) - first.mean(axis=(0, 1))).max() < 25
    dropped = read_shown(whole, choose_keys(whole, "base", "caption_too_short", 3, 0), "base", "caption_too_short")
    assert all(sample.captions == ("word",) for sample in dropped)


def test_hostile_captions_are_printed_safely(whole: Run) -> None:
    text = shown_text(read_shown(whole, ["000000000"], None, None))
    assert "\x1b" not in text and "\u202e" not in text and "a red evil | <b>cat</b>" in text
    assert printable("a\nb\tc\x00d\u200de\U000e0041") == "a b cd\u200de"
    assert printable("a\x1b]8;;http://x\x07link\x1b]8;;\x07\x1b[2J\x9b31mb") == "alinkb"
    assert printable("ünï 猫 🐈") == "ünï 猫 🐈"


def test_many_long_captions_fit_their_cell() -> None:
    lines = caption_lines(["word " * 400, "x" * 90, "\u732b" * 60, "fourth", "fifth"], 40, len)
    assert lines[0].startswith("- word word") and lines[3] == "  ..."
    assert len(lines) <= 10 and max(map(len, lines)) <= 40 and lines[-1].endswith("more)")
    assert caption_lines(["a cat", "", "a dog on a mat"], 12, len) == ["- a cat", "-", "- a dog on a", "  mat"]


def test_show_by_reason(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    (photos / "3.png").write_bytes(b"<html>not found</html>")
    toml = tmp_path / "c.toml"
    toml.write_text(run.config.to_toml())
    make(Run.open(config(tmp_path, "other")))

    def show(*arguments: str) -> str:
        assert front_door("data", "", COMMANDS, ["show", "--config", str(toml), *arguments, "run.name=other"]) == 0
        return capsys.readouterr().out

    assert "1 samples not_an_image" in " ".join(show("--reasons").split())
    table = show("--reason", "not_an_image")
    assert "1 candidates were dropped as not_an_image" in table and "folder:3.png" in table
    assert "show/base-caption_too_short.png" in show("--reason", "caption_too_short", "--n", "4")
    assert "show/train.png" in show()
    assert {path.name for path in (tmp_path / "other" / "show").iterdir()} == {
        "base-caption_too_short.png",
        "train.png",
    }
    assert front_door("data", "", COMMANDS, ["show", "--config", str(toml), "--reason", "timeout"]) == 2
    assert "no candidate was dropped as timeout" in capsys.readouterr().err
    assert front_door("data", "", COMMANDS, ["show", "--config", str(toml), "--reason", "nonsense"]) == 2
    assert "--reasons` lists the reasons" in capsys.readouterr().err


# --- card ---


def test_the_card_says_what_is_in_the_dataset(whole: Run) -> None:
    refresh_card(whole)
    card = (whole.dataset.folder / "README.md").read_text()
    for words in (
        "| planned | 9 | 27 |",
        "| stored | 9 | 27 |",
        "captions.csv",
        "Frozen on 20",
        "noimageai",
        "| kind | folder |",
    ):
        assert words in card, words
    digest = json.loads((whole.dataset.folder / "source.json").read_text())["made_from"]["source"]
    assert "sha256" in json.dumps(digest)
    files = json.loads((whole.dataset.folder / "manifest.json").read_text())["files"]
    assert "README.md" not in files and "source.json" in files
    assert whole.dataset.verify() == []


def test_what_a_source_says_cannot_act_in_the_card() -> None:
    assert escape("a|b <script> [x](y) *z* `c`\n# d \x1b[31m") == (r"a\|b &lt;script&gt; \[x\]\(y\) \*z\* \`c\` \# d")


def test_a_plan_of_the_reshard_has_the_source_rows(whole: Run) -> None:
    target = reshard(whole, "base", "rows", InProcess())
    theirs = {row["key"]: row for row in read_plan(whole.dataset.folder).to_pylist()}
    for row in read_plan(target.dataset.folder).to_pylist():
        assert row["split"] == theirs[row["key"]]["split"] and row["url"] == theirs[row["key"]]["url"]
