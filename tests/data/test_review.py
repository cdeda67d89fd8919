"""The review queue: who gets which text, when it is decided, how agreement is counted, what goes in and out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, f1_score
from sqlalchemy import Engine

from inhouse.core.errors import UserError
from inhouse.data.label.items import text_id
from inhouse.data.label.review import queue as queues
from inhouse.data.label.review.exchange import as_lines, from_studio, studio_config, to_studio
from inhouse.data.label.review.figures import status_of
from inhouse.data.label.review.queue import NewTask, Queue, Task
from inhouse.data.label.review.tables import open_file

QUEUE = Queue("desk", ("spam", "ham", "正常"))
FREE = Queue("answers", ())


def task(text: str, **more: Any) -> NewTask:
    return NewTask(text_id(text), text, {"text": text, "n": 1}, **more)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_file(tmp_path)


def filled(engine: Engine, *texts: str, needed: int = 2) -> Engine:
    queues.add_tasks(engine, QUEUE, [task(text) for text in texts], needed)
    return engine


def one(engine: Engine, text: str) -> Task:
    return next(t for t in queues.all_tasks(engine, QUEUE) if t.asked.text == text)


def say(engine: Engine, reviewer: str, **answers: str) -> None:
    for text, label in answers.items():
        queues.answer(engine, QUEUE, text_id(text), reviewer, label)


def code_of(call: Any) -> str:
    with pytest.raises(UserError) as raised:
        call()
    return raised.value.code


# Adding


def test_add_same_text_again_keeps_its_answers_and_takes_the_new_suggestion(engine: Engine) -> None:
    assert queues.add_tasks(engine, QUEUE, [task("a"), task("b"), task("a")], 2) == 2
    say(engine, "ann", a="spam")
    again = Queue("desk", ("spam", "new"))
    assert queues.add_tasks(engine, again, [task("a", suggestion="ham", score=0.5), task("c")], 2) == 1
    found = one(engine, "a")
    assert found.answers == (("ann", "spam"),) and found.asked.suggestion == "ham"
    assert queues.find_queue(engine, "desk").labels == ("spam", "ham", "正常", "new")


def test_find_queue_without_a_name_needs_exactly_one(engine: Engine) -> None:
    assert code_of(lambda: queues.find_queue(engine, None)) == "review.no_queue"
    queues.add_tasks(engine, QUEUE, [task("a")], 2)
    assert queues.find_queue(engine, None) == QUEUE
    queues.add_tasks(engine, FREE, [task("a")], 2)
    assert code_of(lambda: queues.find_queue(engine, None)) == "review.which_queue"
    assert queues.find_queue(engine, "answers") == FREE
    assert code_of(lambda: queues.find_queue(engine, "other")) == "review.no_queue"


# Answering


def test_two_equal_answers_decide(engine: Engine) -> None:
    filled(engine, "a")
    say(engine, "ann", a="spam")
    assert one(engine, "a").state == "open"
    say(engine, "bob", a="spam")
    found = one(engine, "a")
    assert (found.state, found.label, found.decided_by) == ("decided", "spam", "agreement")


def test_different_answers_wait_for_a_judge(engine: Engine) -> None:
    filled(engine, "a")
    say(engine, "ann", a="spam")
    assert code_of(lambda: queues.adjudicate(engine, QUEUE, text_id("a"), "eve", "ham")) == "review.no_dispute"
    say(engine, "bob", a="ham")
    assert one(engine, "a").state == "disputed"
    settled = queues.adjudicate(engine, QUEUE, text_id("a")[:6], "eve", "正常")
    assert (settled.state, settled.label, settled.decided_by) == ("decided", "正常", "eve")
    assert code_of(lambda: say(engine, "ann", a="ham")) == "review.settled"
    assert queues.adjudicate(engine, QUEUE, text_id("a"), "dan", "ham").label == "ham"  # overruled


def test_corrected_answer_reopens_or_settles_a_row(engine: Engine) -> None:
    filled(engine, "a")
    say(engine, "ann", a="spam")
    say(engine, "bob", a="ham")
    say(engine, "bob", a="spam")
    assert one(engine, "a").state == "decided"
    say(engine, "bob", a="ham")
    assert one(engine, "a").state == "disputed"
    assert code_of(lambda: say(engine, "eve", a="spam")) == "review.full"


def test_answer_that_makes_no_sense_is_refused(engine: Engine) -> None:
    filled(engine, "a", "b")
    assert code_of(lambda: say(engine, "ann", a="eggs")) == "review.unknown_label"
    assert code_of(lambda: queues.answer(engine, QUEUE, "zz", "ann", "spam")) == "review.no_task"
    assert code_of(lambda: queues.answer(engine, QUEUE, "", "ann", "spam")) == "review.no_task"  # both
    queues.add_tasks(engine, FREE, [task("a")], 1)
    assert code_of(lambda: queues.answer(engine, FREE, text_id("a"), "ann", " ")) == "review.unknown_label"
    assert queues.answer(engine, FREE, text_id("a"), "ann", " anything ").label == "anything"


def test_next_finishes_begun_rows_first_and_never_asks_twice(engine: Engine) -> None:
    queues.add_tasks(engine, QUEUE, [task("a"), task("b", priority=-1), task("c", priority=2)], 2)
    order = []
    while found := queues.next_task(engine, QUEUE, "ann"):
        order.append(found.asked.text)
        queues.answer(engine, QUEUE, found.asked.id, "ann", "spam")
    assert order == ["c", "a", "b"]
    queues.add_tasks(engine, QUEUE, [task("d", priority=-1)], 2)
    say(engine, "bob", c="spam", a="ham")
    bobs = [queues.next_task(engine, QUEUE, "bob", skip) for skip in ((), (text_id("b"),))]
    assert [found.asked.text if found else None for found in bobs] == ["b", "d"]
    assert queues.next_task(engine, QUEUE, "bob", [text_id("b"), text_id("d")]) is None


def test_next_gives_a_row_to_no_more_people_than_it_needs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(engine, "a", needed=1)
    assert queues.next_task(engine, QUEUE, "ann") is not None
    assert queues.next_task(engine, QUEUE, "ann") is not None  # hers already
    assert queues.next_task(engine, QUEUE, "bob") is None
    now = queues.time.time()
    monkeypatch.setattr(queues.time, "time", lambda: now + queues.CLAIM_S + 1)
    assert queues.next_task(engine, QUEUE, "bob") is not None


def test_reviewers_at_once_give_every_row_exactly_two_answers(engine: Engine) -> None:
    filled(engine, *(f"text {n}" for n in range(12)))

    def work(reviewer: str) -> int:
        count = 0
        while found := queues.next_task(engine, QUEUE, reviewer):
            queues.answer(engine, QUEUE, found.asked.id, reviewer, "spam")
            count += 1
        return count

    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(work, ["ann", "bob", "eve", "dan"]))
    assert sum(counts) == 24
    assert all(len(t.answers) == 2 and t.state == "decided" for t in queues.all_tasks(engine, QUEUE))


def test_answers_given_before_a_kill_are_kept(tmp_path: Path) -> None:
    filled(open_file(tmp_path), *(f"text {n}" for n in range(200)), needed=1)
    code = (
        "import os, signal, sys; from pathlib import Path;"
        "from inhouse.data.label.review import queue as q; from inhouse.data.label.review.tables import open_file;"
        "engine = open_file(Path(sys.argv[1])); queue = q.find_queue(engine, None); n = 0\n"
        "while found := q.next_task(engine, queue, 'ann'):\n"
        "    q.answer(engine, queue, found.asked.id, 'ann', 'ham'); n += 1; print(n, flush=True)\n"
        "    if n == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1] == "7", done.stderr
    states = Counter(t.state for t in queues.all_tasks(open_file(tmp_path), QUEUE))
    assert states == {"decided": 7, "open": 193}


def test_file_of_a_newer_version_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    engine = open_file(tmp_path)
    with engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA user_version=99")
    assert code_of(lambda: open_file(tmp_path)) == "review.newer"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "reviews.db").write_bytes(b"this is text and no database at all" * 40)
    assert code_of(lambda: open_file(tmp_path / "other")) == "review.bad_file"


def test_file_that_another_process_keeps_locked_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inhouse.data.label.review.tables.BUSY_S", 0.05)
    engine = open_file(tmp_path)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")  # its transaction holds the write lock
        assert code_of(lambda: filled(open_file(tmp_path), "text", needed=1)) == "review.busy"


def test_disputed_tasks_are_those_whose_state_says_so(engine: Engine) -> None:
    queues.add_tasks(engine, QUEUE, [task(str(n), priority=n % 3) for n in range(9)], 2)
    for n in range(8):
        say(engine, "ann", **{str(n): "spam"})
        if n > 1:
            say(engine, "bob", **{str(n): "ham" if n % 2 else "spam"})
    queues.adjudicate(engine, QUEUE, text_id("7"), "eve", "ham")
    expected = [t for t in queues.all_tasks(engine, QUEUE) if t.state == "disputed"]
    assert queues.disputed_tasks(engine, QUEUE) == expected and len(expected) == 2


# Figures


def test_status_of_two_reviewers_equals_scikit_learn(engine: Engine) -> None:
    labels = QUEUE.labels
    ann = [labels[(n * 7) % 3] for n in range(40)]
    bob = [labels[(n * 7) % 3] if n % 4 else labels[n % 3] for n in range(40)]
    filled(engine, *(f"t{n}" for n in range(41)))
    for n, (first, second) in enumerate(zip(ann, bob, strict=True)):
        say(engine, "ann", **{f"t{n}": first})
        say(engine, "bob", **{f"t{n}": second})
    say(engine, "ann", t40="spam")
    found = status_of(QUEUE, queues.all_tasks(engine, QUEUE))
    same = sum(a == b for a, b in zip(ann, bob, strict=True))
    assert (found.tasks, found.open, found.disputed, found.decided) == (41, 1, 40 - same, same)
    assert found.answers == {"ann": 41, "bob": 40}
    [pair] = found.pairs
    assert pair.reviewers == ("ann", "bob") and pair.agreement.rows == 40
    assert pair.agreement.kappa == pytest.approx(cohen_kappa_score(ann, bob), abs=1e-12)
    # Positive specific agreement is the F1 of one reviewer against the other.
    expected = f1_score(ann, bob, labels=sorted(labels), average=None)
    assert [one.share for one in found.by_label] == pytest.approx(expected.tolist())


def test_status_counts_verdicts_and_corrections(engine: Engine) -> None:
    queues.add_tasks(engine, QUEUE, [task("a", given="ham"), task("b", given="ham"), task("c")], 1)
    say(engine, "ann", a="ham", b="spam", c="spam")
    queues.add_tasks(engine, QUEUE, [task("d", given="spam")], 2)
    say(engine, "ann", d="ham")
    say(engine, "bob", d="spam")
    queues.adjudicate(engine, QUEUE, text_id("d"), "eve", "spam")
    found = status_of(QUEUE, queues.all_tasks(engine, QUEUE))
    assert (found.checked, found.corrected, found.adjudicated, found.decided) == (3, 1, 1, 4)
    assert found.given >= found.checked
    assert status_of(FREE, []).pairs == ()


# In and out


def test_exported_rows_are_the_decided_ones_with_their_columns(engine: Engine) -> None:
    filled(engine, "a", "b", "c")
    say(engine, "ann", a="spam", b="spam", c="ham")
    say(engine, "bob", a="spam", b="ham")
    queues.adjudicate(engine, QUEUE, text_id("b"), "eve", "正常")
    lines = [json.loads(line) for line in as_lines(QUEUE, queues.all_tasks(engine, QUEUE)).splitlines()]
    assert sorted(lines, key=lambda line: str(line["text"])) == [
        {"text": "a", "n": 1, "label": "spam", "label_by": "review", "label_reviewers": 2},
        {"text": "b", "n": 1, "label": "正常", "label_by": "adjudication", "label_reviewers": 2},
    ]


answers_of_rows = st.lists(
    st.tuples(
        st.lists(st.sampled_from(QUEUE.labels), max_size=2),
        st.none() | st.sampled_from(QUEUE.labels),
        st.none() | st.sampled_from(QUEUE.labels),
        st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=answers_of_rows, free=st.booleans())
def test_label_studio_round_trip_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], free: bool
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    queue = Queue("desk", () if free else QUEUE.labels)
    engine = open_file(folder)
    tasks = [
        task(f"text {n} 文本", suggestion=suggested, suggested_by="model" if suggested else None, given=label)
        for n, (_, suggested, label, _) in enumerate(rows)
    ]
    queues.add_tasks(engine, queue, tasks, 2)
    for asked, (answers, _, _, settle) in zip(tasks, rows, strict=True):
        for reviewer, label in zip(("ann", "bob"), answers, strict=False):
            queues.answer(engine, queue, asked.id, reviewer, label)
        if settle and len(set(answers)) == 2:
            queues.adjudicate(engine, queue, asked.id, "eve", answers[0])
    before = queues.all_tasks(engine, queue)
    file = folder / "out.json"
    file.write_text(to_studio(queue, before), encoding="utf-8")
    imported = from_studio(file, queue)
    other = open_file(folder / "other")
    assert queues.add_tasks(other, queue, imported.tasks, 2) == len(rows)
    queues.restore(other, queue, imported.recorded)
    after = queues.all_tasks(other, queue)
    assert [(t.answers, t.label, t.decided_by, t.state) for t in after] == [
        (t.answers, t.label, t.decided_by, t.state) for t in before
    ]
    assert [(t.asked.text, t.asked.suggestion, t.asked.suggested_by, t.asked.given) for t in after] == [
        (t.asked.text, t.asked.suggestion, t.asked.suggested_by, t.asked.given) for t in before
    ]
    assert imported.left_out == 0
    assert to_studio(queue, after) == to_studio(queue, [*before][::-1])


def test_label_studio_export_names_people_as_label_studio_accepts_them(engine: Engine) -> None:
    # Its importer takes an annotator's number, {"email": …} or nothing; any other value fails the whole file.
    queues.add_tasks(engine, QUEUE, [task("a", suggestion="ham")], 3)
    for who in ("ann", "7", "bob@example.com"):
        say(engine, who, a="spam")
    [exported] = json.loads(to_studio(QUEUE, queues.all_tasks(engine, QUEUE)))
    people = {one["reviewer"]: one.get("completed_by") for one in exported["annotations"]}
    assert people == {"ann": None, "7": 7, "bob@example.com": {"email": "bob@example.com"}}
    assert "completed_by" not in next(one for one in exported["annotations"] if one["reviewer"] == "ann")
    assert exported["predictions"] == [
        {"result": [{"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": ["ham"]}}]}
    ]


def studio(*tasks: dict[str, Any]) -> str:
    return json.dumps(list(tasks))


def choice(*labels: str, **more: Any) -> dict[str, Any]:
    value = {"choices": list(labels)}
    return {"result": [{"from_name": "l", "to_name": "t", "type": "choices", "value": value}], **more}


def test_label_studio_export_of_another_project_is_understood(tmp_path: Path) -> None:
    file = tmp_path / "project.json"
    file.write_text(
        studio(
            {
                "id": 7,
                "data": {"text": "free money", "url": "x"},
                "annotations": [
                    choice("spam", completed_by={"id": 3, "email": "ann@example.com"}, lead_time=3.5),
                    choice("ham", completed_by=4),
                    choice("ham", completed_by=5, was_cancelled=True),
                    choice("ham", "spam", completed_by=6),
                    choice("spam", completed_by="eve", ground_truth=True),
                ],
                "predictions": [{"result": []}, choice("spam", model_version="v2", score=0.7)],
                "meta": {},
            },
            {"data": {"text": "hello"}, "annotations": [choice("ham")]},
            {"data": {"image": "x.png"}},
        ),
        encoding="utf-8",
    )
    found = from_studio(file, Queue("q"))
    assert found.labels == ("spam", "ham") and found.left_out == 4
    first, second = found.recorded
    assert first.answers == (("4", "ham"), ("ann@example.com", "spam")) and first.verdict == ("eve", "spam")
    assert second.answers == (("annotator 1", "ham"),)
    assert found.tasks[0].fields["url"] == "x"
    assert (found.tasks[0].suggestion, found.tasks[0].suggested_by, found.tasks[0].score) == ("spam", "v2", 0.7)


def test_label_studio_written_answers_are_understood(tmp_path: Path) -> None:
    file = tmp_path / "project.json"
    written = {"completed_by": "ann", "result": [{"type": "textarea", "value": {"text": ["an answer"]}}]}
    plain = {"completed_by": "bob", "result": [{"type": "textarea", "value": {"text": "an answer"}}]}
    file.write_text(studio({"data": {"text": "q"}, "annotations": [written, plain]}), encoding="utf-8")
    found = from_studio(file, Queue("q"))
    assert found.labels == () and found.recorded[0].answers == (("ann", "an answer"), ("bob", "an answer"))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("{}", "review.bad_import"),
        ("no json", "review.bad_import"),
        ('[{"annotations": []}]', "review.bad_import"),
        ('[{"data": {"body": "x"}}]', "review.no_texts"),
        ("[]", "review.no_texts"),
        (None, "review.no_file"),
    ],
)
def test_label_studio_file_that_is_none_is_named(tmp_path: Path, content: str | None, code: str) -> None:
    if content is not None:
        (tmp_path / "x.json").write_text(content, encoding="utf-8")
    assert code_of(lambda: from_studio(tmp_path / "x.json", QUEUE)) == code


def test_label_studio_configuration_names_every_label() -> None:
    import xml.etree.ElementTree as ET

    tree = ET.fromstring(studio_config(Queue("q", ('a"b', "<c>"), "body")))
    assert [node.get("value") for node in tree.iter("Choice")] == ['a"b', "<c>"]
    assert tree.find("Text").get("value") == "$body"  # type: ignore[union-attr]
    assert ET.fromstring(studio_config(FREE)).find("TextArea") is not None
