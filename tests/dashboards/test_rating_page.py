import base64
import hashlib
import html
import re
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboards.markup import image_html, question_html
from data.pipeline.artifacts import publish_json, read_json
from data.pipeline.run import Run
from humaneval.rating.store import Store
from humaneval.results import write_results
from humaneval.study.study import Study
from tests.humaneval.fake_run import CAPTIONS, fake_config, png

SCRIPTS = Path(__file__).resolve().parents[2] / "dashboards"


@pytest.fixture
def page(toml: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    return open_page("rate.py", toml, monkeypatch)


def open_page(script: str, toml: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    import streamlit as st

    st.cache_resource.clear()
    monkeypatch.setattr("sys.argv", [script, "--config", str(toml)])
    return AppTest.from_file(str(SCRIPTS / script), default_timeout=30)


def sent(page: AppTest) -> str:
    """Everything that the server sends to the browser for this page."""
    return "".join(str(node.proto) for node in page._tree if getattr(node, "proto", None) is not None)


def bodies(page: AppTest) -> list[str]:
    return [element.proto.body for element in page.get("html")]


def served_images(page: AppTest) -> list[bytes]:
    found = [re.search(r'src="data:image/png;base64,([^"]+)"', body) for body in bodies(page)]
    return [base64.b64decode(match[1]) for match in found if match]


def token_of(page: AppTest) -> str:
    value = page.query_params["rater"]
    return value if isinstance(value, str) else value[0]


def press(page: AppTest, answer: str) -> None:
    next(button for button in page.button if button.key.startswith(f"{answer}-")).click().run()


def store_of(run: Run) -> tuple[Study, Store]:
    study = Study.of(run)
    return study, Store.of(run, run.config, study)


def test_consent_then_three_answers_then_resume(
    page: AppTest, rated: Run, toml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, store = store_of(rated)
    page.run()
    assert study.wording["consent"] in page.markdown[-1].value and not served_images(page)
    assert "rater" not in page.query_params
    page.button(key="consent").click().run()
    token = token_of(page)
    for answer in ("left", "not_sure", "right"):
        assert not page.exception
        press(page, answer)
    assert [r.rater for r in store.ratings()] == [token] * 3
    assert sorted(r.answer for r in store.ratings()) == ["left", "not_sure", "right"]
    shown = served_images(page)

    again = open_page("rate.py", toml, monkeypatch)
    again.query_params["rater"] = token
    again.run()
    assert served_images(again) == shown, "the same open question, sides included"
    assert "3 of 9" in sent(again)
    for _ in range(6):
        press(again, "left")
    assert again.title[0].value == "Thank you" and not served_images(again)
    assert len({(r.question, r.rater) for r in store.ratings()}) == 9


def test_images_are_served_byte_for_byte_and_nothing_names_a_system(page: AppTest, rated: Run) -> None:
    study, store = store_of(rated)
    known = {facts["sha256"] for facts in study.files.values()}
    page.run()
    page.button(key="consent").click().run()
    for _ in range(9):
        images = served_images(page)
        assert len(images) == 2
        lease = store.next_lease(store.find(token_of(page)))
        assert [study.image(lease.left_image), study.image(lease.right_image)] == images
        assert {hashlib.sha256(image).hexdigest() for image in images} <= known
        text = sent(page).lower()
        for secret in ("unclip", "glide", "simulated", lease.left_image, lease.right_image):
            assert secret not in text
        caption = study.questions[lease.question].caption
        assert (caption is None) == (study.questions[lease.question].kind == "photorealism")
        for each in CAPTIONS:
            assert (html.escape(each) in "".join(bodies(page))) == (each == caption)
        press(page, "left")


def test_a_click_answers_the_question_that_was_shown(page: AppTest, rated: Run) -> None:
    """A button pressed again from a stale page carries its own lease: nothing is stored twice, nothing lands elsewhere."""
    _, store = store_of(rated)
    page.run()
    page.button(key="consent").click().run()
    rater = store.find(token_of(page))
    lease = store.next_lease(rater)
    assert store.answer(lease.lease, "right"), "the first click of a double click arrives by another way"
    press(page, "left")
    assert [(r.lease, r.answer) for r in store.ratings()] == [(lease.lease, "right")]


def test_shortcuts(page: AppTest) -> None:
    page.run()
    page.button(key="consent").click().run()
    assert {button.label: button.proto.shortcut for button in page.button} == {
        "Left": "1",
        "Right": "2",
        "Not sure": "0",
    }


@pytest.mark.parametrize("simulated", [False, True])
def test_foreign_and_simulated_tokens_lead_to_consent(page: AppTest, rated: Run, simulated: bool) -> None:
    _, store = store_of(rated)
    page.query_params["rater"] = store.join(simulated=True).rater if simulated else "<script>alert(1)</script>"
    page.run()
    assert page.button(key="consent") and not served_images(page) and "<script>" not in sent(page)


def test_a_missing_study_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml = tmp_path / "empty.toml"
    toml.write_text(fake_config(tmp_path / "nowhere").to_toml())
    page = open_page("rate.py", toml, monkeypatch).run()
    assert not page.exception
    assert page.text[0].value.startswith("error: ") and "humaneval build" in page.text[0].value
    assert not (tmp_path / "nowhere").exists(), "looking writes nothing"


def test_results_page_shows_people_and_simulated_apart(rated: Run, toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from humaneval.rating.simulate import simulate
    from humaneval.settings import SimulatedRaters

    results_file = rated.folder / "humaneval/results.json"
    results_file.unlink(missing_ok=True)
    page = open_page("app.py", toml, monkeypatch).run()
    assert "humaneval results" in page.text[0].value
    study, store = store_of(rated)
    simulate(study, store, SimulatedRaters(raters=3), seed=0)
    write_results(rated, study, store.ratings())
    page = open_page("app.py", toml, monkeypatch).run()
    assert not page.exception and [h.value for h in page.subheader] == ["Simulated raters"]
    assert "SIMULATED" in page.warning[0].value and len(page.dataframe) == 1
    assert list(page.dataframe[0].value["raters"]) == ["3 simulated"] * 3
    lease = store.next_lease(store.join())
    store.answer(lease.lease, "left")
    write_results(rated, study, store.ratings())
    page = open_page("app.py", toml, monkeypatch).run()
    assert [h.value for h in page.subheader] == ["People", "Simulated raters"]
    publish_json(results_file, read_json(results_file, "results") | {"study": {"hash": "another"}})
    page = open_page("app.py", toml, monkeypatch).run()
    assert "of another study" in page.warning[0].value
    results_file.unlink()


@pytest.mark.parametrize(
    "caption", ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><b>', "**b** [l](http://x) $x$ :red[x]"]
)
def test_hostile_captions_are_text(caption: str) -> None:
    from html.parser import HTMLParser

    seen: list[str] = []
    text: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.append(tag)

        def handle_data(self, data: str) -> None:
            text.append(data)

    parser = Parser()
    parser.feed(question_html("Which?", caption))
    parser.close()
    assert seen == ["div", "h2", "p"] and caption in "".join(text)


@pytest.mark.parametrize(("side", "enlarged"), [(16, True), (67, True), (480, False), (1000, False)])
def test_small_images_are_enlarged_by_whole_pixels_and_all_carry_their_bytes(side: int, enlarged: bool) -> None:
    content = png(0, side)
    shown = image_html(content, "left image")
    assert ("image-rendering:pixelated" in shown) is enlarged
    width = int(re.search(r"min\(100%,(\d+)px", shown)[1])
    assert width % side == 0 and (width <= 480 or width == side)
    assert base64.b64decode(re.search(r"base64,([^\"]+)", shown)[1]) == content
