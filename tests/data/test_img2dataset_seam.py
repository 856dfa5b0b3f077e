"""The facts about the installed img2dataset that the seam leans on, each pinned."""

import errno
import inspect
from pathlib import Path

import pytest

from data.fetch.http import Fetched
from data.fetch.img2dataset_seam import download_shard
from data.fetch.reasons import Reason
from data.fetch.resize import Resized


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
            "data.fetch.img2dataset_seam._Shard.write", lambda self, *_: self._remember(OSError(errno.ENOSPC, "full"))
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
