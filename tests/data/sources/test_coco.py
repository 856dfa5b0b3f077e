"""Source `coco`: captions, splits, licences and images as the annotation files say."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import SHARED
from data.fetch.settings import FetchSettings
from data.pipeline.errors import UserError
from data.sources.candidates import Candidate, Served
from data.sources.coco import CocoSource
from data.sources.settings import CocoSettings
from data.sources.source import fetcher_for

REAL = SHARED / "prompts" / "coco_captions_val2017.json"


def annotations(path: Path, ids: list[int], texts: list[tuple[int, int, Any]], **more: Any) -> Path:
    """`texts`: image id, annotation id, caption."""
    images = [
        {
            "id": i,
            "file_name": f"{i:012d}.jpg",
            "coco_url": f"http://images/{i:012d}.jpg",
            "flickr_url": f"http://f/{i}",
            "license": 4,
        }
        for i in ids
    ]
    content = {
        "info": {}, "licenses": [{"id": 4, "name": "Attribution License", "url": "http://by"}], "images": images,
        "annotations": [{"image_id": i, "id": n, "caption": text} for i, n, text in texts],
    }  # fmt: skip
    path.write_text(json.dumps(content | more))
    return path


def read(images: Path | None = None, **files: Path) -> tuple[list[Candidate], CocoSource]:
    settings = CocoSettings(
        annotations={name: str(path) for name, path in files.items()}, images=None if images is None else str(images)
    )
    source = CocoSource(settings)
    return list(source.candidates()), source


def test_captions_splits_and_licences(tmp_path: Path) -> None:
    train = annotations(
        tmp_path / "train.json", [5, 9, 7], [(9, 3, "third"), (9, 1, "first"), (5, 2, " a\ncat "), (9, 2, "")]
    )
    val = annotations(tmp_path / "val.json", [9], [(9, 8, "held out")])
    found, source = read(train=train, val=val)
    assert [(c.source_id, c.split, c.captions) for c in found] == [
        ("9", "val", ("held out",)), ("5", "train", ("a cat",)), ("7", "train", ()),
    ]  # fmt: skip
    assert found[0] == Candidate(
        "9",
        "http://images/000000000009.jpg",
        ("held out",),
        split="val",
        license="Attribution License",
        source_page="http://f/9",
    )
    assert sum(source.notes.values()) == 2  # image 9 again, and its captions in train that no image is left for
    assert source.facts()["annotations"]["val"]["name"] == "val.json"
    with source.serving() as payload:
        assert payload == Served("web")


def test_images_from_a_local_folder(tmp_path: Path) -> None:
    path = annotations(tmp_path / "val.json", [1, 2], [(1, 1, "a"), (2, 2, "b")])
    (tmp_path / "images" / "val2017").mkdir(parents=True)
    (tmp_path / "images" / "val2017" / "000000000001.jpg").write_bytes(b"one")
    found, source = read(tmp_path / "images", val=path)
    assert [c.url for c in found] == ["folder:val2017/000000000001.jpg", "folder:000000000002.jpg"]
    with source.serving() as payload:
        fetch = fetcher_for(payload, FetchSettings(), None)
    assert fetch(found[0].url).content == b"one"
    assert str(fetch(found[1].url).reason) == "file_missing"
    assert source.facts()["images"] == {"val2017/000000000001.jpg": {"bytes": 3}}
    hostile = annotations(tmp_path / "bad.json", [], [], images=[{"id": 1, "file_name": "../val.json"}])
    found, _ = read(tmp_path / "images", val=hostile)
    assert str(fetch(found[0].url).reason) == "path_refused"


def test_odd_entries_are_counted(tmp_path: Path) -> None:
    odd: list[Any] = [{"file_name": "x"}, 7, {"id": 1, "file_name": None}]
    path = annotations(tmp_path / "val.json", [], [(1, 1, "a"), (2, 2, "b"), (1, 0, 5)], images=odd)
    content = json.loads(path.read_text())
    content["annotations"] += [{"image_id": 1}, "x", {"image_id": [1], "caption": "c"}]
    path.write_text(json.dumps(content))
    found, source = read(val=path)
    assert [(c.source_id, c.url, c.captions) for c in found] == [("1", "", ("5", "a"))]
    assert sorted(source.notes.values()) == [1, 2, 3]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[1]", "holds list; COCO's"),
        ('{"a": 1, "b": 2}', "holds a, b; COCO's captions"),
        ('{"images": [], "annotations": [{"bbox": 1}]}', "annotations without captions"),
        ('{"images": [', "cannot read .*val.json"),
        ("[" * 100_000, "cannot read .*val.json"),
    ],
)
def test_other_files_are_one_line(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "val.json").write_text(content)
    with pytest.raises(UserError, match=words):
        read(val=tmp_path / "val.json")
    with pytest.raises(UserError, match="dataset.coco.annotations.test: cannot read .*none.json"):
        CocoSource(CocoSettings(annotations={"test": str(tmp_path / "none.json")})).facts()


@pytest.mark.skipif(not REAL.exists(), reason="COCO's annotations are not on this machine")
def test_the_real_validation_captions() -> None:
    found, source = read(val=REAL)
    assert len(found) == 5000 and sum(len(c.captions) for c in found) == 25_014 and not source.notes
    assert {c.split for c in found} == {"val"} and all(c.license and c.source_page for c in found)
