"""Source `webdataset`: samples of existing tars, grouped as webdataset groups them, read back as byte ranges."""

import io
import json
import pickle
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest

from data.fetch.files import TarFetcher, tar_url
from data.fetch.reasons import Reason
from data.fetch.settings import FetchSettings
from data.pipeline.errors import UserError
from data.sources.candidates import Candidate
from data.sources.settings import WebdatasetSettings
from data.sources.source import fetcher_for
from data.sources.webdataset import WebdatasetSource


def pack(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def read(path: Path | str) -> tuple[list[Candidate], WebdatasetSource]:
    source = WebdatasetSource(WebdatasetSettings(path=str(path)))
    return list(source.candidates()), source


def content_of(source: WebdatasetSource, url: str, max_bytes: int = 10_000) -> Any:
    with source.serving() as served:
        found = fetcher_for(pickle.loads(pickle.dumps(served)), FetchSettings(max_bytes=max_bytes), None)(url)  # noqa: S301
    return found.content if found.reason is None else found.reason


def test_samples_keep_text_and_json(tmp_path: Path) -> None:
    """A tar of img2dataset, a nested key, long names, and members that are no part of a sample."""
    meta = {
        "url": "HTTP://Host/a.jpg#x",
        "caption": "a cat",
        "key": "000000000",
        "status": "success",
        "width": 9,
        "license": "CC0",
        "x": None,
    }
    long = "d" * 120 + "/" + "n" * 120
    pack(
        tmp_path / "00000.tar",
        [
            ("000000000.jpg", b"JPEG"), ("000000000.json", json.dumps(meta).encode()), ("000000000.txt", b" a\ncat "),
            ("dir.v1/b.seg.png", b"mask"), ("dir.v1/b.PNG", b"PNG"), ("dir.v1/b.json", b'{"captions": ["one", "two", ""], "n": 1e999}'),
            ("README", b"no ending"), (f"{long}.webp", b"WEBP"), (f"{long}.txt", "caf\xe9".encode("latin-1")),
        ],
    )  # fmt: skip
    found, source = read(tmp_path / "00000.tar")
    assert [(c.source_id, c.captions) for c in found] == [
        ("00000/000000000", ("a cat",)), ("00000/dir.v1/b", ("one", "two")), (f"00000/{long}", ("caf�",)),
    ]  # fmt: skip
    assert [content_of(source, c.url) for c in found] == [b"JPEG", b"PNG", b"WEBP"]
    assert found[0].extra == {k: v for k, v in meta.items() if k not in ("caption", "license")}
    assert (found[0].license, found[0].identity, found[0].key) == ("CC0", "http://host/a.jpg", None)
    assert found[1].extra == {"n": None} and not source.notes


def test_grouping_is_webdatasets_own(tmp_path: Path) -> None:
    """Random tars of adjacent members: keys and endings as webdataset itself finds them."""
    import webdataset as wds

    draw = random.Random(0)
    members: list[tuple[str, bytes]] = []
    for i in range(40):
        stem = draw.choice(["", "a/", "a.b/c/"]) + f"{i:03d}"
        endings = draw.sample(["jpg", "txt", "json", "cls", "seg.png", "TXT.gz"], draw.randint(1, 5))
        members += [(f"{stem}.{ending}", b"{}") for ending in endings]
    path = pack(tmp_path / "x.tar", members)
    theirs = [s["__key__"] for s in wds.WebDataset(str(path), shardshuffle=False)]
    found, _ = read(path)
    assert [c.source_id.removeprefix("x/") for c in found] == theirs
    with_image = {name.partition(".jpg")[0] for name, _ in members if name.endswith(".jpg")}
    assert {c.source_id.removeprefix("x/") for c in found if "+" in c.url} == with_image


def test_a_dataset_of_ours_keeps_keys_and_splits(tmp_path: Path) -> None:
    meta = {
        "key": "000000042", "source_id": "http://h/a", "url": "http://h/A", "captions": ["one", "two"], "split": "val",
        "license": "CC0", "source_page": "http://p", "attribution": "me", "attributes": {"objects": []}, "nsfw": "UNLIKELY",
        "watermark": 0.5, "extra": {"similarity": 0.3}, "width": 8, "height": 8, "original_sha256": "0" * 64, "stored_sha256": "1" * 64,
    }  # fmt: skip
    sample = [("000000042.png", b"PNG"), ("000000042.json", json.dumps(meta).encode()), ("000000042.txt", b"one")]
    damaged = [("000000050.png", b"P"), ("000000050.json", b"{"), ("000000050.txt", b"text")]
    found, source = read(pack(tmp_path / "00001.tar", sample + damaged))
    assert found[0] == Candidate(
        source_id="http://h/a", url=found[0].url, captions=("one", "two"), attributes={"objects": []}, split="val", license="CC0",
        source_page="http://p", attribution="me", key="000000042", expected_hash="1" * 64,
        extra={"similarity": 0.3, "url": "http://h/A", "original_sha256": "0" * 64}, nsfw="UNLIKELY", watermark=0.5,
    )  # fmt: skip
    assert (found[1].key, found[1].captions) == ("000000050", ("text",))
    assert content_of(source, found[0].url) == b"PNG"
    other = dict(sample)
    meta = meta | {"extra": found[0].extra, "url": "webdataset:x!1+2"}
    other["000000042.json"] = json.dumps(meta).encode()
    again, _ = read(pack(tmp_path / "again.tar", list(other.items())))
    assert again[0].extra == found[0].extra, "the address on the web outlives a second reading"


def test_equal_keys_never_overwrite_each_other(tmp_path: Path) -> None:
    pack(
        tmp_path / "in" / "a.tar",
        [("1.jpg", b"A1"), ("1.txt", b"a"), ("2.jpg", b"A2"), ("1.txt", b"late"), ("1.jpg", b"A3"), ("1.jpg", b"A4")],
    )
    pack(tmp_path / "in" / "b" / "a.tar", [("1.jpg", b"B1"), ("1.txt", b"b")])
    found, source = read(tmp_path / "in")
    assert [(c.source_id, c.captions) for c in found] == [
        ("a/1", ("a",)), ("a/2", ()), ("a/1#2", ("late",)), ("a/1#3", ()), ("b/a/1", ("b",)),
    ]  # fmt: skip
    assert [content_of(source, c.url) for c in found] == [b"A1", b"A2", b"A3", b"A4", b"B1"]
    assert source.notes == {"sample whose key another one, not adjacent to it, has: a.tar": 2}
    assert list(source.facts()["files"]) == ["a.tar", "b/a.tar"]


def test_links_sparse_files_and_missing_images_are_dropped_by_the_download(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (
            ("a.jpg", tarfile.SYMTYPE),
            ("b.jpg", tarfile.LNKTYPE),
            ("c.jpg", tarfile.FIFOTYPE),
            ("d.jpg", tarfile.DIRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
            info = tarfile.TarInfo(name.replace("jpg", "txt"))
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    found, source = read(path)
    assert [c.captions for c in found] == [("x",)] * 4
    assert {content_of(source, c.url) for c in found} == {Reason.FILE_MISSING}


def test_damaged_tars_give_what_is_readable(tmp_path: Path) -> None:
    members = [(f"{i}.{ending}", bytes([65 + i]) * 700) for i in range(4) for ending in ("txt", "jpg")]
    whole = pack(tmp_path / "x.tar", members, tarfile.USTAR_FORMAT).read_bytes()
    sample = 2 * (512 + 1024)
    for content, samples, words in (
        (whole[: sample * 2 + 512 + 1024 + 512 + 100], 3, "damaged or no plain tar"),  # within the third image
        (whole[: sample * 2], 2, "ends without its end marker"),
        (whole[: sample * 2] + b"\xff" * sample + whole[sample * 3 :], 2, "damaged after the last sample"),
        (whole[: sample * 2 + 100], 2, "damaged after the last sample"),
        (b"", 0, "damaged or no plain tar"),
        (b"GIF89a, not a tar" * 100, 0, "damaged or no plain tar"),
    ):
        (tmp_path / "x.tar").write_bytes(content)
        found, source = read(tmp_path / "x.tar")
        assert len(found) == samples, words
        (note,) = source.notes
        assert words in note and note.endswith(": x.tar")
        outcomes = [content_of(source, c.url) for c in found]
        assert outcomes[:2] == [b"A" * 700, b"B" * 700][:samples]
        assert samples < 3 or outcomes[2] == Reason.FILE_UNREADABLE


def test_the_fetcher_stays_in_its_folder(tmp_path: Path) -> None:
    root = tmp_path / "in"
    pack(root / "a b.tar", [("1.jpg", b"inside")])
    (tmp_path / "secret.tar").write_bytes(b"secret" * 100)
    (root / "link.tar").symlink_to(tmp_path / "secret.tar")
    fetch = TarFetcher(root, max_bytes=600)
    assert fetch(tar_url("a b.tar", 512, 6)).content == b"inside"
    for name in ("../secret.tar", "link.tar", str(tmp_path / "secret.tar")):
        assert fetch(tar_url(name, 0, 6)).reason == Reason.PATH_REFUSED, name
    assert fetch(tar_url("none.tar", 0, 6)).reason == Reason.FILE_MISSING
    assert fetch(tar_url("a b.tar", 0, 601)).reason == Reason.TOO_LARGE
    assert fetch(tar_url("a b.tar", 10**15, 6)).reason == Reason.FILE_UNREADABLE
    assert fetch(tar_url("nul\0.tar", 0, 6)).reason == Reason.FILE_UNREADABLE
    for url in ("webdataset:a b.tar!0+x", "webdataset:x!-1+5", "http://h/x", "webdataset:a b.tar!"):
        assert fetch(url).reason == Reason.FILE_MISSING, url
    with pytest.raises(UserError, match=r"link.tar is a link that leads out of"):
        read(root)
    with pytest.raises(UserError, match=r"ends in '.tar.gz'; readable are .tar"):
        read(root / "x.tar.gz")
