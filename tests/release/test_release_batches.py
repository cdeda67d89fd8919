from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import random
import socket
from dataclasses import replace

import pytest
from release_writers import answer_lines, started

from inhouse.core.errors import UserError
from inhouse.database import writing
from inhouse.release.batches import (
    LEASE_S,
    Answer,
    Batch,
    Line,
    add_batch,
    add_lines,
    answers,
    cancel_batch,
    claim,
    drop_answers,
    finish,
    get_batch,
    give_back,
    lines_left,
    list_batches,
    move_batch,
    open_batches,
    renew,
    this_worker,
    unanswered,
)
from inhouse.release.keys import create_key
from inhouse.release.registry import Registry
from inhouse.release.stored import Page

LIVES = this_worker()  # workers of this process, which is alive
FAR = "another-machine|17|boot:1"


@pytest.fixture
def batch(registry: Registry) -> Batch:
    """A batch of ten lines, of the only key."""
    key = create_key(registry.engine, "one")[1].id
    made = add_batch(registry.engine, batch_of(key))
    assert add_lines(registry.engine, made.id, lines(10)) == 10
    return made


def batch_of(key: int, number: int = 1) -> Batch:
    return Batch(f"batch_{number}", key, "/v1/chat/completions", "file-1", "validating", 100 + number, 86_500)


def lines(count: int) -> list[Line]:
    return [Line(n, f"id \x00 {n} 你", n * 100, 99) for n in range(1, count + 1)]


def answer(line: Line, failed: bool = False) -> Answer:
    return Answer(line.line, line.custom_id, failed, {"id": line.custom_id})


def test_batch_goes_through_its_states_and_counts_its_answers(registry: Registry, batch: Batch) -> None:
    engine = registry.engine
    assert move_batch(engine, batch, "in_progress", 110)
    first, second, third = claim(engine, batch.id, LIVES, 3, 120)
    assert finish(engine, batch.id, LIVES, [answer(first), answer(second, failed=True)]) == [1, 2]
    found = get_batch(engine, batch.key, batch.id)
    assert found is not None and (found.total, found.completed, found.failed) == (10, 1, 1)
    assert found.status == "in_progress" and found.moments == {"validating": 101, "in_progress": 110}
    assert lines_left(engine, batch.id) == 8 and open_batches(engine) == [found]
    assert not move_batch(engine, batch, "failed", 130)  # it is not 'validating' any more
    assert move_batch(engine, found, "completed", 140, {"output_file": "file-2", "errors": [{"line": third.line}]})
    done = get_batch(engine, batch.key, batch.id)
    assert done is not None and done.output_file == "file-2" and done.errors == [{"line": 3}]
    assert open_batches(engine) == []


def test_batch_is_seen_and_cancelled_only_by_its_key(registry: Registry, batch: Batch) -> None:
    other = create_key(registry.engine, "two")[1].id
    assert get_batch(registry.engine, other, batch.id) is None
    assert cancel_batch(registry.engine, other, batch.id, 120) is None
    assert list_batches(registry.engine, other) == []
    cancelled = cancel_batch(registry.engine, batch.key, batch.id, 120)
    assert cancelled is not None and cancelled.status == "cancelling" and cancelled.moments["cancelling"] == 120
    assert cancel_batch(registry.engine, batch.key, batch.id, 130) == cancelled
    second = add_batch(registry.engine, batch_of(batch.key, 2))
    assert [b.id for b in list_batches(registry.engine, batch.key, Page(1))] == [second.id]
    assert [b.id for b in list_batches(registry.engine, batch.key, Page(5, second.id))] == [batch.id]


def test_batch_with_an_id_twice_keeps_no_line(registry: Registry, batch: Batch) -> None:
    second = add_batch(registry.engine, batch_of(batch.key, 2))
    with pytest.raises(UserError) as error:
        add_lines(registry.engine, second.id, [*lines(3), replace(lines(3)[0], line=4)])
    assert error.value.code == "release.batch_twice" and str(error.value)
    assert lines_left(registry.engine, second.id) == 0


def test_lines_are_claimed_once_in_order_with_the_ids_that_they_have(registry: Registry, batch: Batch) -> None:
    first = claim(registry.engine, batch.id, LIVES, 4, 100)
    second = claim(registry.engine, batch.id, FAR, 100, 100)
    assert first + second == lines(10)
    assert claim(registry.engine, batch.id, LIVES, 5, 100) == []


def test_lines_of_a_worker_elsewhere_are_free_when_its_lease_is_over(registry: Registry, batch: Batch) -> None:
    taken = claim(registry.engine, batch.id, FAR, 4, 100)
    assert claim(registry.engine, batch.id, LIVES, 10, 100 + LEASE_S) == lines(10)[4:]
    assert renew(registry.engine, FAR, 150) == 4
    assert claim(registry.engine, batch.id, LIVES, 10, 150 + LEASE_S) == []
    assert claim(registry.engine, batch.id, LIVES, 10, 151 + LEASE_S) == taken
    assert finish(registry.engine, batch.id, FAR, [answer(taken[0])]) == []  # too late: it has another worker now
    assert finish(registry.engine, batch.id, LIVES, [answer(taken[0])]) == [1]
    assert finish(registry.engine, batch.id, LIVES, [answer(taken[0], failed=True)]) == []


def test_lines_of_a_dead_process_of_this_machine_are_free_at_once(registry: Registry, batch: Batch) -> None:
    gone = f"{socket.gethostname()}|{os.getpid()}|of an earlier boot"
    assert len(claim(registry.engine, batch.id, gone, 10, 100)) == 10
    assert claim(registry.engine, batch.id, LIVES, 10, 100) == lines(10)


def test_lines_that_are_given_back_are_free_at_once(registry: Registry, batch: Batch) -> None:
    claim(registry.engine, batch.id, LIVES, 4, 100)
    assert give_back(registry.engine, batch.id, LIVES) == 4
    assert claim(registry.engine, batch.id, FAR, 4, 100) == lines(4)


def test_answers_come_in_the_order_of_the_input_and_leave_without_their_counts(
    registry: Registry, batch: Batch
) -> None:
    taken = claim(registry.engine, batch.id, LIVES, 8, 100)
    mixed = random.Random(3).sample(taken, 8)
    finish(registry.engine, batch.id, LIVES, [answer(line, failed=line.line % 4 == 0) for line in mixed])
    assert [a.line for a in answers(registry.engine, batch.id, failed=False)] == [1, 2, 3, 5, 6, 7]
    assert [(a.line, a.body) for a in answers(registry.engine, batch.id, failed=True)] == [
        (line.line, {"id": line.custom_id}) for line in taken if line.line % 4 == 0
    ]
    assert list(unanswered(registry.engine, batch.id)) == lines(10)[8:]
    assert drop_answers(registry.engine, batch.id) == 8
    assert list(answers(registry.engine, batch.id, failed=False)) == []
    found = get_batch(registry.engine, batch.key, batch.id)
    assert found is not None and (found.completed, found.failed) == (6, 2)


def test_batch_whose_workers_are_killed_has_each_id_once(registry: Registry, database_url: str) -> None:
    """kill -9 in the middle of claims and answers: the next workers finish, nothing is lost, nothing twice."""
    chance = random.Random(2)
    key = create_key(registry.engine, "one")[1].id
    made = add_batch(registry.engine, batch_of(key))
    add_lines(registry.engine, made.id, lines(90))
    for turn in range(4):
        ours, theirs = multiprocessing.Pipe()
        workers = [started(answer_lines, registry.store.root, database_url, made.id, theirs) for _ in range(2)]
        # A fast machine may have answered every line in an earlier turn: then nobody tells that it begins.
        multiprocessing.connection.wait([ours, workers[0].sentinel], timeout=60)
        if turn < 3:
            workers[0].join(chance.uniform(0, 0.1))
            for worker in workers:
                worker.kill()
        for worker in workers:
            worker.join(60)
    assert lines_left(registry.engine, made.id) == 0
    found = list(answers(registry.engine, made.id, failed=False))
    assert [a.custom_id for a in found] == [line.custom_id for line in lines(90)]
    assert all(a.body == {"said": a.custom_id} for a in found)


@pytest.mark.parametrize(
    "broken", ["metadata = '{'", "moments = '[]'", "errors = '1'", "expires = 'soon'", "moments = CAST(x'ff' AS TEXT)"]
)
def test_broken_batch_has_failed_keeps_no_other_and_is_told_to_its_key(
    registry: Registry, batch: Batch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    if broken.endswith(("'soon'", "TEXT)")) and registry.engine.dialect.name != "sqlite":
        pytest.skip("a server refuses it")
    other = add_batch(registry.engine, batch_of(batch.key, 2))
    done = add_batch(registry.engine, replace(batch_of(batch.key, 3), status="completed"))
    with writing(registry.engine) as connection:
        connection.exec_driver_sql(f"UPDATE batches SET {broken} WHERE id IN ('{batch.id}', '{done.id}')")
    for _ in range(2):
        assert [each.id for each in open_batches(registry.engine)] == [other.id]
    assert caplog.text.count(batch.id) == 1
    found = get_batch(registry.engine, batch.key, batch.id)
    assert found is not None and found.status == "failed" and "failed" in found.moments
    assert [error["code"] for error in found.errors] == ["batch_broken"] and found.total == 10
    listed = {each.id: each.status for each in list_batches(registry.engine, batch.key)}
    assert listed == {batch.id: "failed", other.id: "validating", done.id: "failed"}


def test_line_that_cannot_be_read_is_told_as_the_batchs(registry: Registry, batch: Batch) -> None:
    with writing(registry.engine) as connection:
        connection.exec_driver_sql("UPDATE batch_items SET custom_id = '\"cut' WHERE line = 2")
    with pytest.raises(UserError) as error:
        claim(registry.engine, batch.id, LIVES, 3, 120)
    assert error.value.code == "release.batch_broken" and batch.id in str(error.value)
    with pytest.raises(UserError):
        list(unanswered(registry.engine, batch.id))
