"""Front doors, and the rating page in a real browser (slow; skipped where there is no Chromium)."""

import base64
import hashlib
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dashboards.__main__ import COMMANDS
from data.pipeline.cli import front_door
from data.pipeline.errors import Code
from data.pipeline.executors import InProcess
from data.pipeline.run import Run
from humaneval.rating.store import Store
from humaneval.study.build import build_study
from humaneval.study.study import Study
from tests.dashboards.browser import Browser, wait_for
from tests.humaneval.fake_run import draw_again, fake_config, fake_run

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
IMAGES = "[...document.querySelectorAll('img[alt$=image]')]"


def test_no_file_hides_a_room_or_the_standard_library() -> None:
    """`streamlit run` puts dashboards/ first on sys.path, so a page named like a module would be imported in its place."""
    rooms = {"data", "embed", "training", "eval", "humaneval", "dashboards"}
    for path in (ROOT / "dashboards").glob("*.py"):
        assert path.stem not in rooms | set(sys.stdlib_module_names) | {"streamlit", "altair", "pandas", "PIL"}


def test_no_folder_is_one_that_streamlit_adopts() -> None:
    """Streamlit offers every script in a folder called `pages` beside the one that it runs: raters would find the others."""
    assert not (ROOT / "dashboards" / "pages").exists()


@pytest.mark.parametrize(("command", "advice"), [("rate", "humaneval build"), ("results", "humaneval results")])
def test_what_is_missing_is_said_before_a_server_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, advice: str
) -> None:
    toml = tmp_path / "empty.toml"
    toml.write_text(fake_config(tmp_path / "nowhere").to_toml())
    assert front_door("dashboards", "", COMMANDS, [command, "--config", str(toml)]) == 2
    error = capsys.readouterr().err
    assert advice in error and error.count("\n") == 1


def test_raters_are_not_asked_about_images_that_are_others_today(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dashboards.__main__.serve", lambda *_: None)
    run = fake_run(tmp_path)
    build_study(run, run.config, InProcess(), precious=False)
    rate = ["rate", "--config", str(run.folder / "config.toml")]
    assert front_door("dashboards", "", COMMANDS, rate) == 0
    draw_again(run)
    assert front_door("dashboards", "", COMMANDS, rate) == 2
    error = capsys.readouterr().err
    assert "humaneval build" in error and f"[{Code.STALE}]" in error and error.count("\n") == 1


@pytest.fixture
def server(toml: Path, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dashboards", "rate", "--config", str(toml), "--port", str(port)]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        yield f"http://localhost:{port}/"
        process.terminate()
        process.wait(20)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; `apt-get install chromium`")
def test_a_person_rates_in_a_real_browser(server: str, rated: Run, tmp_path: Path) -> None:
    """Consent by mouse, answers by keys, a double click, a reload; the browser holds the files' bytes after sanitising."""
    study = Study.of(rated)
    store = Store.of(rated, rated.config, study)
    known = {facts["sha256"] for facts in study.files.values()}
    button = "[...document.querySelectorAll('button')].find(b => b.innerText.includes('{}'))"

    def images() -> list[str]:
        return browser.js(f"{IMAGES}.map(i => i.complete && i.naturalWidth ? i.src : '')") or []

    def idle() -> bool:
        state = "document.querySelector('[data-testid=stApp]')?.getAttribute('data-test-script-state')"
        return browser.js(state) == "notRunning"

    def answers() -> list[str]:
        return [rating.answer for rating in store.ratings()]

    with Browser(str(CHROMIUM), tmp_path / "profile") as browser:
        wait_for(lambda: _answers(server), 60)
        browser.open(server)
        wait_for(lambda: browser.js(f"Boolean({button.format('I agree')})"), 60)
        browser.js(f"{button.format('I agree')}.click()")
        for i, key in enumerate("120"):
            shown = wait_for(lambda: len(images()) == 2 and all(images()) and images(), 30)
            for src in shown:
                content = base64.b64decode(re.sub("^data:image/png;base64,", "", src))
                assert hashlib.sha256(content).hexdigest() in known
            wait_for(idle, 30)  # a key that comes before its button is there is nobody's
            browser.press(key)
            wait_for(lambda i=i: len(answers()) == i + 1, 30)
            wait_for(lambda shown=shown: len(images()) == 2 and images() != shown, 30)
        assert sorted(answers()) == ["left", "not_sure", "right"]
        wait_for(idle, 30)
        before = images()
        browser.js(f"(() => {{ const b = {button.format('Left')}; b.click(); b.click(); }})()")
        wait_for(lambda: len(images()) == 2 and images() != before, 30)
        assert len(answers()) == 4, "a double click is one rating"
        wait_for(idle, 30)
        before = images()
        browser.open(browser.js("location.href"))
        wait_for(lambda: images() == before, 30)
        assert browser.js("document.querySelectorAll('script[src*=alert]').length") == 0


def _answers(url: str) -> bool:
    import urllib.request

    try:
        with urllib.request.urlopen(f"{url}_stcore/health", timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False
