from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from data.pipeline.errors import UserError
from humaneval.rating.database import LEASES, open_database, people_have_rated
from humaneval.rating.store import Store
from humaneval.study.study import Study
from tests.humaneval.conftest import LEASE_SECONDS, Clock


def test_a_double_submit_is_one_rating_and_the_first_stands(store: Store) -> None:
    rater = store.join()
    lease = store.next_lease(rater)
    assert lease
    assert store.answer(lease.lease, "left") is True
    assert store.answer(lease.lease, "left") is False
    assert store.answer(lease.lease, "right") is False
    assert [r.answer for r in store.ratings()] == ["left"]


def test_simultaneous_submits_of_one_lease_are_one_rating(store: Store) -> None:
    lease = store.next_lease(store.join())
    assert lease
    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda i: store.answer(lease.lease, ("left", "right")[i % 2]), range(8)))
    assert sum(stored) == 1 and len(store.ratings()) == 1


def test_unknown_leases_and_answers_store_nothing(store: Store) -> None:
    lease = store.next_lease(store.join())
    assert lease
    assert store.answer("no such lease'; DROP TABLE ratings; --", "left") is False
    with pytest.raises(UserError, match="left, right, not_sure"):
        store.answer(lease.lease, "both")
    assert store.ratings() == []


def test_racing_raters_get_different_questions(study: Study, tmp_path: Path) -> None:
    """Four raters, four questions of the first kind, each through an engine of its own as separate processes would have."""
    url = f"sqlite:///{tmp_path}/race.sqlite"
    stores = [Store(open_database(url), study, 3, LEASE_SECONDS) for _ in range(4)]
    raters = [store.join() for store in stores]
    with ThreadPoolExecutor(4) as pool:
        leases = list(pool.map(lambda pair: pair[0].next_lease(pair[1]), zip(stores, raters, strict=True)))
    assert len({lease.question for lease in leases if lease}) == 4


def test_one_rater_in_many_tabs_has_one_open_question(store: Store) -> None:
    rater = store.join()
    with ThreadPoolExecutor(8) as pool:
        leases = list(pool.map(lambda _: store.next_lease(rater), range(16)))
    assert len(set(leases)) == 1 and leases[0] is not None


def test_an_open_lease_keeps_others_away_until_it_expires(store: Store, study: Study, clock: Clock) -> None:
    away = store.join()
    held = store.next_lease(away)
    assert held
    others = [lease for _ in range(3) if (lease := store.next_lease(store.join()))]
    assert held.question not in {lease.question for lease in others} and len({lease.question for lease in others}) == 3
    for lease in others:
        assert store.answer(lease.lease, "left")
    clock.now += LEASE_SECONDS + 1
    late = store.next_lease(store.join())
    assert late and late.question == held.question, "nobody has answered it and nobody holds it"
    assert store.next_lease(away) == held, "the rater who comes back finds the same question, sides included"
    assert store.answer(held.lease, "right") is True


def test_an_answer_after_expiry_is_kept_with_its_response_time(store: Store, clock: Clock) -> None:
    lease = store.next_lease(store.join())
    assert lease
    clock.now += 2 * LEASE_SECONDS
    assert store.answer(lease.lease, "left") is True
    assert store.ratings()[0].response_seconds == 2 * LEASE_SECONDS


def test_a_session_resumes_from_the_database_and_ends(study: Study, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/resume.sqlite"
    token = Store(open_database(url), study, 3, LEASE_SECONDS).join().rater
    seen = []
    for _ in range(9):
        store = Store(open_database(url), study, 3, LEASE_SECONDS)  # the server restarts before every question
        rater = store.find(token)
        assert rater and not rater.simulated
        lease = store.next_lease(rater)
        assert lease == store.next_lease(rater)
        assert lease and store.answer(lease.lease, "not_sure")
        seen.append(lease.question)
    assert len(set(seen)) == 9
    assert [study.questions[q].kind for q in seen] == [kind for kind in study.kinds for _ in range(3)]
    assert store.next_lease(rater) is None
    assert store.answered(rater) == store.share() == dict.fromkeys(study.kinds, 3)


def test_no_two_leases_of_a_question_for_a_rater(store: Store, study: Study) -> None:
    """The database itself refuses what the code never asks for."""
    rater = store.join()
    lease = store.next_lease(rater)
    assert lease
    row = {
        "lease": "second", "study": study.hash, "question": lease.question, "rater": rater.rater,
        "left_image": "x", "right_image": "y", "leased_at": 0.0, "expires_at": 1.0,
    }  # fmt: skip
    with pytest.raises(IntegrityError), store._engine.begin() as connection:
        connection.execute(LEASES.insert().values(**row))


def test_programs_take_nothing_from_people(store: Store) -> None:
    program = store.join("simulated-1", simulated=True)
    taken = store.next_lease(program)
    assert taken and store.answer(taken.lease, "left")
    people = [store.next_lease(store.join()) for _ in range(4)]
    assert taken.question in {lease.question for lease in people if lease}


def test_people_have_rated(study: Study, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/sub/people.sqlite"
    assert people_have_rated(url, study.hash) is False and not (tmp_path / "sub").exists()
    store = Store(open_database(url), study, 3, LEASE_SECONDS)
    for simulated, expected in ((True, False), (False, True)):
        lease = store.next_lease(store.join(simulated=simulated))
        assert lease and store.answer(lease.lease, "left")
        assert people_have_rated(url, study.hash) is expected
    assert people_have_rated(url, "another study") is False


def test_no_personal_data_and_the_consent_version(store: Store, study: Study) -> None:
    rater = store.join()
    assert store.join(rater.rater) == rater
    with store._engine.connect() as connection:
        (row,) = connection.execute(text("SELECT * FROM raters")).mappings()
    assert set(row) == {"rater", "study", "simulated", "consent_version", "joined_at"}
    assert row["consent_version"] == study.wording["consent_version"]
    assert store.find("nobody") is None


def test_sqlite_is_durable_and_patient(store: Store) -> None:
    with store._engine.connect() as connection:
        pragmas = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "busy_timeout", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "busy_timeout": 30_000, "foreign_keys": 1}


@pytest.mark.parametrize("url", ["nonsense", "mysql://user:secret@host/db", "sqlite:////proc/no/such/file.sqlite"])
def test_a_bad_database_is_one_line_without_the_password(url: str) -> None:
    with pytest.raises(UserError, match="database") as caught:
        open_database(url)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
