"""The rating page: consent, then one question after another, then thanks. Where a rater stands is read from the database."""

import streamlit as st

from dashboards.markup import PAGE_STYLE, image_html, question_html
from data.pipeline.run import Run
from humaneval.rating.store import Lease, Rater, Store
from humaneval.study.study import Study


@st.cache_resource(max_entries=2)
def open_study(run_folder: str, _run: Run) -> tuple[Study, Store]:
    """The study and its store, opened once a server: a study never changes under a running one."""
    study = Study.of(_run)
    return study, Store.of(_run, _run.config, study)


def rating_page(run: Run) -> None:
    """Show what the rater whose token the address carries is to see next."""
    st.html(PAGE_STYLE)
    study, store = open_study(str(run.folder.resolve()), run)
    rater = _rater(store)
    if rater is None:
        _consent(study, store)
        return
    lease = store.next_lease(rater)
    _progress(store, rater)
    if lease is None:
        _thanks()
    else:
        _question(study, store, lease)


def _rater(store: Store) -> Rater | None:
    """The person whose token the address carries. A simulated rater's token opens nothing."""
    token = st.query_params.get("rater")
    rater = store.find(token) if token else None
    return None if rater is None or rater.simulated else rater


def _consent(study: Study, store: Store) -> None:
    st.title("Compare images")
    st.markdown("\n".join(f"- {line}" for line in study.wording["instructions"]))
    st.markdown("Answer with the buttons or with the keys **1** (left), **2** (right) and **0** (not sure).")
    with st.container(border=True):
        st.markdown(f"**Before you start.** {study.wording['consent']}")
        st.button("I agree, start", type="primary", key="consent", on_click=_join, args=(store,))


def _join(store: Store) -> None:
    st.query_params["rater"] = store.join().rater


def _progress(store: Store, rater: Rater) -> None:
    done, share = sum(store.answered(rater).values()), sum(store.share().values())
    st.progress(min(1.0, done / share), text=f"{done} of {share} answered")


def _question(study: Study, store: Store, lease: Lease) -> None:
    question = study.questions[lease.question]
    st.html(question_html(study.wording["questions"][question.kind], question.caption))
    left, right = st.columns(2, gap="medium")
    for column, token, side, shortcut in (
        (left, lease.left_image, "left", "1"),
        (right, lease.right_image, "right", "2"),
    ):
        with column:
            st.html(image_html(study.image(token), f"{side} image"))
            _answer_button(store, lease, side, side.capitalize(), shortcut)
    _answer_button(store, lease, "not_sure", "Not sure", "0")


def _answer_button(store: Store, lease: Lease, answer: str, label: str, shortcut: str) -> None:
    # The lease travels in args, frozen when the button is drawn: a late second click answers what was shown, and is dropped.
    key = f"{answer}-{lease.lease}"
    st.button(label, key=key, on_click=_rate, args=(store, lease.lease, answer), shortcut=shortcut, width="stretch")


def _rate(store: Store, lease: str, answer: str) -> None:
    store.answer(lease, answer)


def _thanks() -> None:
    st.title("Thank you")
    st.write("You have answered all your questions. You may close this page.")
