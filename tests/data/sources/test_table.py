"""Source `table`: every format, preset and oddity of a URL list becomes the candidates that its rows say."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import SHARED
from data.pipeline.errors import UserError
from data.sources.candidates import Candidate
from data.sources.settings import TableSettings
from data.sources.table import TableSource, group_equal

REAL = SHARED / "prompts" / "img2dataset_test_1000.parquet"
ROWS = [
    {"url": "http://h/a.jpg", "caption": "one, with a comma"},
    {"url": "http://h/b.jpg", "caption": 'two "quoted"\nlines\tand a tab'},
    {"url": "HTTP://H:80/a.jpg#x", "caption": "one again"},
    {"url": "", "caption": "no address"},
    {"url": "http://h/c.jpg", "caption": ""},
    {"url": "http://h/d.jpg", "caption": "long " * 2000},
    {"url": "http://h/e.jpg", "caption": "null\0byte"},
    {"url": "http://h/ü.jpg", "caption": "日本語 ü"},
]
WANTED = [
    ("http://h/a.jpg", ("one, with a comma", "one again")),
    ("http://h/b.jpg", ('two "quoted" lines and a tab',)),
    ("", ("no address",)),
    ("http://h/c.jpg", ()),
    ("http://h/d.jpg", (("long " * 2000).strip(),)),
    ("http://h/e.jpg", ("null byte",)),
    ("http://h/ü.jpg", ("日本語 ü",)),
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows in the format that the file's ending names."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
        return path
    with (gzip.open if path.name.endswith(".gz") else open)(path, "wt", encoding="utf-8", newline="") as file:
        if kind == "jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path: Path | str, batch_rows: int = 8192, **settings: Any) -> list[Candidate]:
    return list(TableSource(TableSettings(path=str(path), **settings), batch_rows).candidates())


def short(found: list[Candidate]) -> list[tuple[str, tuple[str, ...]]]:
    return [(c.url, c.captions) for c in found]


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv", "jsonl", "csv.gz", "tsv.gz", "jsonl.gz"])
def test_every_format_gives_the_same_candidates(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"list.{ending}", ROWS)
    for batch_rows in (1, 3, 8192):
        found = read(path, batch_rows)
        assert short(found) == WANTED
        assert len({c.source_id for c in found}) == len(found)


def test_a_folder_and_a_pattern_are_their_files_in_order(tmp_path: Path) -> None:
    for name, rows in (("b.csv", ROWS[3:]), ("a.jsonl.gz", ROWS[:2]), ("sub/x.parquet", ROWS[2:3])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, rows)
    (tmp_path / "README.txt").write_text("not a table")
    (tmp_path / ".hidden.csv").write_text("not,read\n")
    (tmp_path / "empty.csv").touch()
    source = TableSource(TableSettings(path=str(tmp_path)))
    assert short(list(source.candidates())) == [
        WANTED[0], WANTED[1], *WANTED[2:],
    ]  # fmt: skip
    assert source.notes == {"empty input file empty.csv": 1}
    assert list(source.facts()["files"]) == ["a.jsonl.gz", "b.csv", "empty.csv", "sub/x.parquet"]
    assert [c.url for c in read(tmp_path / "*.jsonl.gz")] == ["http://h/a.jpg", "http://h/b.jpg"]
    assert [c.url for c in read(tmp_path / "s*" / "*.parquet")] == ["HTTP://H:80/a.jpg#x"]


def test_batches_do_not_matter_and_repeats_merge_across_them(tmp_path: Path) -> None:
    """Property: random lists over two files, with repeats in other spellings, read in batches of every size."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        rows = []
        for i in range(60):
            n = int(rng.integers(20))
            host = ("http://Host", "http://host", "http://host:80", "HTTP://host.")[int(rng.integers(4))]
            rows.append({"url": f"{host}/{n}" + ("#f" if rng.random() < 0.3 else ""), "caption": f"caption {i}"})
        folder = tmp_path / str(seed)
        folder.mkdir()
        write(folder / "0.csv", rows[:25])
        write(folder / "1.parquet", rows[25:])
        expected: dict[str, list[str]] = {}
        for row in rows:
            expected.setdefault(row["url"].rpartition("/")[2].removesuffix("#f"), []).append(row["caption"])
        whole = read(folder)
        assert [(c.source_id.rpartition("/")[2], list(c.captions)) for c in whole] == list(expected.items())
        for size in (1, 2, 7, 26):
            assert read(folder, size) == whole


def test_lines_that_are_no_rows_are_counted_and_cost_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(
        b"\xef\xbb\xbfurl,caption\nhttp://h/1,caf\xe9\nhttp://h/2,too,many\nhttp://h/3\n\nhttp://h/4,fine\n"
        b'http://h/5,"never closed\nhttp://h/6,swallowed\n' + b"http://h/7,x\n" * 20_000 + b"http://h/8,last\n"
    )
    source = TableSource(TableSettings(path=str(path)))
    found = list(source.candidates())
    assert short(found[:2]) == [("http://h/1", ("caf�",)), ("http://h/4", ("fine",))]
    assert found[-1].captions == ("last",), "reading goes on after the limit of one field"
    lost = sum(source.notes.values())
    assert 10_000 < lost < 10_200 and sum(len(c.captions) for c in found) + lost == 20_000 + 7
    lines = tmp_path / "list.jsonl"
    lines.write_bytes(
        b'{"url": "http://h/1", "caption": "a"}\nnot json\n[1]\n\n{"url": "http://h/2", "caption": "\\ud800 b"}\n{"caption": 7}\n'
    )
    source = TableSource(TableSettings(path=str(lines)))
    assert short(list(source.candidates())) == [("http://h/1", ("a",)), ("http://h/2", ("\ufffd b",)), ("", ("7",))]
    assert list(source.notes.values()) == [2]


def test_parquet_of_every_type(tmp_path: Path) -> None:
    """Lists of captions, dictionaries, bytes, text that is not UTF-8 (Parquet does not check), numbers, nulls."""
    broken = pa.array([b"caf\xe9", b"ok", None]).view(pa.string())
    table = pa.table(
        {
            "url": pa.array(["http://h/1", "http://h/2", None]).dictionary_encode(),
            "caption": broken,
            "many": pa.array([["a", "b "], [], None]),
            "raw": pa.array([b"x\xff", b"y", b""], pa.large_binary()),
            "n": pa.array([1.5, float("nan"), 3.0]),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    assert short(read(tmp_path / "t.parquet")) == [("http://h/1", ("caf�",)), ("http://h/2", ("ok",)), ("", ())]
    many = read(tmp_path / "t.parquet", caption="many", extra=("raw", "n"))
    assert [c.captions for c in many] == [("a", "b"), (), ()]
    assert [c.extra for c in many] == [{"raw": "x�", "n": 1.5}, {"raw": "y"}, {"n": 3.0}]
    assert read(tmp_path / "t.parquet", caption="raw")[0].captions == ("x�",)


LAION = {
    "SAMPLE_ID": 7, "URL": "http://h/1", "TEXT": "a cat", "LICENSE": "?", "NSFW": "UNLIKELY", "similarity": 0.31,
    "pwatermark": 0.25, "punsafe": 0.01, "hash": -123, "WIDTH": 640.0, "HEIGHT": float("nan"),
}  # fmt: skip
SHA = "ab" * 32


@pytest.mark.parametrize(
    ("preset", "row", "wanted"),
    [
        ("laion", LAION, {
            "license": "?", "nsfw": "UNLIKELY", "watermark": 0.25, "expected_hash": None,
            "extra": {"SAMPLE_ID": 7, "similarity": 0.31, "punsafe": 0.01, "WIDTH": 640.0},
        }),
        ("laion", {"url": "http://h/1", "text": "a cat", "punsafe": 0.5}, {"nsfw": "0.5", "extra": {"punsafe": 0.5}}),
        ("coyo", {"id": 1, "url": "http://h/1", "text": "a cat", "watermark_score": 0.5, "nsfw_score_opennsfw2": 0.125,
                  "image_phash": "c9b6a7d8469c1959", "clip_similarity_vitb32": 0.25, "text_length": 5}, {
            "watermark": 0.5, "nsfw": "0.125",
            "extra": {"id": 1, "nsfw_score_opennsfw2": 0.125, "image_phash": "c9b6a7d8469c1959", "clip_similarity_vitb32": 0.25},
        }),
        ("datacomp", {"uid": "u", "url": "http://h/1", "text": "a cat", "sha256": SHA.upper(), "original_width": 9,
                      "face_bboxes": [[0.5, 0.25]]}, {
            "expected_hash": SHA, "extra": {"uid": "u", "original_width": 9, "face_bboxes": [[0.5, 0.25]]},
        }),
        ("cc12m", {"image_url": "http://h/1", "caption": "a cat"}, {"extra": {}}),
    ],
)  # fmt: skip
def test_presets_find_their_columns(tmp_path: Path, preset: str, row: dict[str, Any], wanted: dict[str, Any]) -> None:
    for ending in ("parquet", "jsonl"):
        (found,) = read(write(tmp_path / f"list.{ending}", [row]), preset=preset)
        assert (found.url, found.captions) == ("http://h/1", ("a cat",))
        assert {name: getattr(found, name) for name in wanted} == wanted


def test_numbers_of_text_files_are_numbers(tmp_path: Path) -> None:
    """A preset's columns of numbers hold them in every format, whole ones as int; what is no number is null and counted."""
    row = {
        "url": "http://h/{}",
        "text": "a cat",
        "similarity": 0.31,
        "punsafe": 0.5,
        "WIDTH": 640,
        "HEIGHT": "",
        "language": "12",
    }
    for number, ending in enumerate(("parquet", "csv.gz", "tsv", "jsonl.gz")):
        own = row | {"url": f"http://h/{number}", "HEIGHT": 480 if ending == "parquet" else ""}
        write(tmp_path / f"{number}.{ending}", [own])
    text = {name: str(value) for name, value in row.items()} | {
        "url": "http://h/9",
        "punsafe": "unsafe?",
        "WIDTH": "nan",
    }
    write(tmp_path / "9.csv", [text])
    source = TableSource(TableSettings(path=str(tmp_path), preset="laion"))
    found = list(source.candidates())
    wanted = {"similarity": 0.31, "punsafe": 0.5, "WIDTH": 640, "language": "12"}
    assert [c.extra for c in found] == [
        wanted | {"HEIGHT": 480}, *[wanted] * 3, {"similarity": 0.31, "language": "12"},
    ]  # fmt: skip
    assert all(isinstance(c.extra["WIDTH"], int) for c in found[:4] if c.extra)
    assert [c.nsfw for c in found] == ["0.5"] * 4 + ["unsafe?"]
    assert source.notes == {"value of column punsafe that is no number": 1}


@pytest.mark.parametrize(("preset", "row"), [("cc3m", 'a "cat" ,\t{url}\n'), ("cc12m", '{url}\ta "cat" ,\n')])
def test_conceptual_captions_have_no_header_and_no_quoting(tmp_path: Path, preset: str, row: str) -> None:
    text = "".join(row.format(url=f"http://h/{i}") for i in range(3)) + row.format(url="http://h/9").replace(
        'a "', '"a '
    )
    (tmp_path / "bare.tsv").write_text(text)
    header = "caption\turl\n" if preset == "cc3m" else "url\tcaption\n"
    (tmp_path / "headed.tsv").write_text(header + text)
    for name in ("bare.tsv", "headed.tsv"):
        found = read(tmp_path / name, preset=preset)
        assert [c.url for c in found] == ["http://h/0", "http://h/1", "http://h/2", "http://h/9"]
        assert found[0].captions == ('a "cat" ,',) and found[-1].captions == ('"a cat" ,',)
    (tmp_path / "labels.tsv").write_text("".join(line + "\tlabel,label\t0.5\n" for line in text.splitlines()))
    assert [c.url for c in read(tmp_path / "labels.tsv", preset=preset, extra=("column3",))] == [c.url for c in found]


def test_named_columns_carry_licence_attribution_and_hash(tmp_path: Path) -> None:
    row = {
        "link": "http://h/1",
        "alt": "a",
        "lic": "CC0",
        "page": "http://p",
        "by": "someone",
        "md5": "A" * 32,
        "n": 3,
        "s": "x",
    }
    names = {
        "url": "link", "caption": "alt", "license": "lic", "source_page": "page", "attribution": "by", "hash": "md5", "nsfw": "s",
        "watermark": "n", "extra": ("n", "s"),
    }  # fmt: skip
    (found,) = read(write(tmp_path / "list.jsonl", [row]), **names)
    assert found == Candidate(
        "http://h/1", "http://h/1", ("a",), license="CC0", source_page="http://p", attribution="someone",
        expected_hash="a" * 32, extra={"n": 3, "s": "x"}, nsfw="x", watermark=3.0,
    )  # fmt: skip
    source = TableSource(TableSettings(path=str(write(tmp_path / "bad.csv", [row | {"md5": "zz"}])), **names))
    assert [c.expected_hash for c in source.candidates()] == [None]
    assert source.notes == {"value of column md5 that is no MD5, SHA-1 or SHA-256 in hex digits": 1}


@pytest.mark.parametrize(
    ("name", "content", "settings", "words"),
    [
        ("a.csv", b"url,text\nu,c\n", {}, "has no column caption; it has url, text"),
        ("a.csv", b"url,text\nu,c\n", {"preset": "laion", "license": "lic"}, "has no column lic; it has url, text"),
        ("a.csv", b"url,caption\nu,c\n", {"extra": ("size",)}, "has no column size; it has url, caption"),
        ("a.parquet", b"PAR1 not really", {}, "cannot read .*a.parquet"),
        ("a.csv.gz", b"url,caption\n", {}, "cannot read .*a.csv.gz: Not a gzipped file"),
        (
            "a.csv.gz",
            gzip.compress(b"url,caption\n" + b"http://h/1,x\n" * 999, mtime=0)[:-20],
            {},
            "cannot read .*a.csv.gz",
        ),
        ("a.xlsx", b"", {}, "ends in '.xlsx'; readable are .parquet, .csv"),
    ],
)
def test_unusable_files_are_one_line(
    tmp_path: Path, name: str, content: bytes, settings: dict[str, Any], words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as raised:
        read(tmp_path / name, **settings)
    assert "\n" not in str(raised.value)


def test_paths_that_lead_nowhere_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.txt").touch()
    outside = tmp_path / "outside.csv"
    write(outside, ROWS)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.csv").symlink_to(outside)
    for path, words in (
        (tmp_path / "none.csv", "cannot read .*none.csv: No such file"),
        (tmp_path / "n*.csv", "no file matches"),
        (tmp_path / "*.txt", "the pattern .* matches .*x.txt; readable are"),
    ):
        with pytest.raises(UserError, match=words):
            TableSource(TableSettings(path=str(path))).facts()
    assert short(read(tmp_path / "in")) == short(read(tmp_path / "in" / "link.csv")) == WANTED
    outside.unlink()
    (tmp_path / "in" / "link.csv").unlink()
    with pytest.raises(UserError, match="holds no file that ends in"):
        TableSource(TableSettings(path=str(tmp_path / "in"))).facts()


def test_group_equal_finds_first_appearances() -> None:
    rng = np.random.default_rng(0)
    names = rng.integers(0, 40, 100)
    digests = b"".join(int(n % 3).to_bytes(8, "little") + int(n).to_bytes(8, "little") for n in names)
    found = group_equal(digests)
    assert found.first.tolist() == [names.tolist().index(n) for n in names]
    assert found.repeated.tolist() == [names.tolist().count(n) > 1 for n in names]
    assert len(group_equal(b"").first) == 0


@pytest.mark.skipif(not REAL.exists(), reason="the real URL list is not on this machine")
def test_a_thousand_rows_of_the_web() -> None:
    found = read(REAL, preset="laion")
    assert len(found) == 1000 and sum(len(c.captions) for c in found) == 1000
    assert read(REAL, 7, preset="laion") == found
