"""The facts about the installed img2dataset that the seam leans on, each pinned."""

import errno
import hashlib
import inspect
import time
from pathlib import Path

import pytest

from data.dataset.breaker import Breaker, SuccessCollapsed
from data.dataset.img2dataset_seam import download_shard
from data.fetch.http import Fetched
from data.fetch.reasons import Reason
from data.images.resize import Resized
from data.pipeline.errors import UserError


def good_resize(content: bytes) -> Resized:
    return Resized(content, None, 1, 2, 3, 4)


def test_outcomes_come_back_in_order_with_bytes_and_reasons(tmp_path: Path) -> None:
    def fetch(url: str) -> Fetched:
        return Fetched(url.encode() * 3, http_status=200) if "good" in url else Fetched(reason=Reason.DNS, detail="x")

    def resize(content: bytes) -> Resized:
        return Resized(reason=Reason.DECODE_ERROR) if b"torn" in content else good_resize(content)

    urls = [f"good-{i}" if i % 3 else f"lost-{i}" for i in range(40)] + ["good-torn"]
    outcomes, spool = download_shard(urls, fetch, resize, 8, tmp_path / "scratch")
    content = spool.read_bytes()
    for i, (url, outcome) in enumerate(zip(urls, outcomes, strict=True)):
        assert outcome.row == i
        if "torn" in url:
            assert (outcome.reason, outcome.image, outcome.http_status) == (Reason.DECODE_ERROR, None, 200)
        elif "good" in url:
            assert outcome.image is not None
            at, size = outcome.image
            assert content[at : at + size] == url.encode() * 3
            assert (outcome.reason, outcome.width, outcome.original_height, outcome.original_bytes) == (
                None,
                1,
                4,
                len(url) * 3,
            )
        else:
            assert (outcome.reason, outcome.image) == (Reason.DNS, None)


def test_an_empty_shard(tmp_path: Path) -> None:
    assert download_shard([], lambda _: Fetched(b"x"), good_resize, 2, tmp_path / "s")[0] == []


@pytest.mark.parametrize("where", ["fetch", "resize", "write"])
def test_our_own_errors_are_never_swallowed(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    fetch = full if where == "fetch" else lambda _: Fetched(b"x")
    resize = full if where == "resize" else good_resize
    if where == "write":
        monkeypatch.setattr(
            "data.dataset.img2dataset_seam._Shard.write", lambda self, *_: self._remember(OSError(errno.ENOSPC, "full"))
        )
    with pytest.raises(OSError) as raised:
        download_shard(["a", "b"], fetch, resize, 2, tmp_path / "s")  # type: ignore[arg-type]
    assert raised.value.errno == errno.ENOSPC


def test_img2dataset_swallows_what_a_writer_raises() -> None:
    """If this fails, img2dataset has stopped doing so, and the side channel for errors may go."""
    import img2dataset.downloader as engine

    source = inspect.getsource(engine.Downloader.download_shard)
    assert "except Exception as err" in source and "failed to download" in source


def test_the_fetch_is_a_module_global_called_with_row_and_url() -> None:
    import img2dataset.downloader as engine

    assert list(inspect.signature(engine.download_image_with_retry).parameters)[0] == "row"
    assert "download_image_with_retry(" in inspect.getsource(engine.Downloader.download_shard)


def test_the_global_is_restored(tmp_path: Path) -> None:
    import img2dataset.downloader as engine

    before = engine.download_image_with_retry
    download_shard(["a"], lambda _: Fetched(b"x"), good_resize, 1, tmp_path / "s")
    assert engine.download_image_with_retry is before


@pytest.mark.parametrize("name", ["md5", "sha1", "sha256"])
def test_bytes_that_are_not_the_promised_ones_are_never_decoded(tmp_path: Path, name: str) -> None:
    decoded: list[bytes] = []

    def resize(content: bytes) -> Resized:
        decoded.append(content)
        return good_resize(content)

    right = hashlib.new(name, b"right").hexdigest()
    outcomes, _ = download_shard(
        ["right", "wrong", "unknown", "upper", "lost"],
        lambda url: (
            Fetched(reason=Reason.DNS)
            if url == "lost"
            else Fetched(b"wrong" if url == "wrong" else b"right", http_status=200)
        ),
        resize,
        2,
        tmp_path / "s",
        expected_hashes=[right, right, None, right.upper(), right],
    )
    assert [o.reason for o in outcomes] == [None, Reason.HASH_MISMATCH, None, None, Reason.DNS]
    assert decoded == [b"right"] * 3
    wrong = outcomes[1]
    assert (wrong.http_status, wrong.original_bytes, wrong.image) == (200, 5, None)
    assert wrong.original_sha256 == hashlib.sha256(b"wrong").hexdigest() and right in wrong.log["detail"]


def test_a_hash_of_no_known_kind_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="7 characters; allowed are MD5"):
        download_shard(["a"], lambda _: Fetched(b"x"), good_resize, 1, tmp_path / "s", expected_hashes=["abcdefg"])


@pytest.mark.parametrize("where", [Reason.DNS, Reason.DECODE_ERROR])
def test_the_breaker_stops_inside_a_shard(tmp_path: Path, where: Reason) -> None:
    asked: list[str] = []

    def fetch(url: str) -> Fetched:
        asked.append(url)
        time.sleep(0.001)
        return Fetched(b"x") if where == Reason.DECODE_ERROR else Fetched(reason=where)

    with pytest.raises(SuccessCollapsed, match=f"0 of the last 50 .* are {where}"):
        download_shard(
            [str(n) for n in range(1000)],
            fetch,
            lambda _: Resized(reason=where),
            4,
            tmp_path / "s",
            breaker=Breaker(50, 0.1),
        )
    assert len(asked) < 100


def test_a_breaker_that_has_no_reason_to_stop_hears_of_every_row(tmp_path: Path) -> None:
    breaker = Breaker(window=30, min_success=0.5)
    urls = [str(n) for n in range(30)]
    download_shard(
        urls,
        lambda url: Fetched(b"x") if int(url) % 2 else Fetched(reason=Reason.TLS),
        good_resize,
        4,
        tmp_path / "s",
        breaker,
    )
    assert breaker._counts == {None: 15, Reason.TLS: 15}


def test_after_an_error_of_ours_nothing_more_is_asked_for(tmp_path: Path) -> None:
    asked: list[str] = []

    def fetch(url: str) -> Fetched:
        asked.append(url)
        raise OSError(errno.EMFILE, "Too many open files")

    with pytest.raises(OSError, match="Too many"):
        download_shard([str(n) for n in range(500)], fetch, good_resize, 4, tmp_path / "s")
    assert len(asked) <= 8
