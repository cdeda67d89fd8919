"""Jobs as folders: what is told of them while they run, when they end, and when they are killed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from inhouse.core.errors import UserError
from inhouse.core.store import Store
from inhouse.flow import jobs

MISSING = {"project": "none.yaml"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "ws")


def ended(store: Store, **request: object) -> Path:
    folder = jobs.submit(store, "run:run", {**MISSING, **request}, attached=True, offline=True)
    for _ in jobs.tail(folder):
        pass
    return folder


def test_job_that_fails_keeps_its_error(store: Store) -> None:
    folder = ended(store, project="/none.yaml")
    result = jobs.result(folder)
    assert result and result["error"]["code"] == "project.missing"
    described = jobs.describe(folder)
    assert described.status == "failed" and described.error and "/none.yaml" in described.error
    assert jobs.listing(store) == (described,)


def test_job_that_hits_a_bug_logs_the_traceback_and_tells_none(store: Store) -> None:
    folder = jobs.submit(store, "run:no_such_function", MISSING, attached=True, offline=True)
    list(jobs.tail(folder))
    result = jobs.result(folder)
    assert result and result["error"]["code"] == "job.bug" and result["error"]["exit_code"] == 1
    assert "Traceback" not in result["error"]["message"] and "Traceback" in (folder / "output.log").read_text()


def test_key_of_a_request_reaches_the_job_and_no_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, str]] = []
    real = jobs.subprocess.Popen
    monkeypatch.setattr(jobs.subprocess, "Popen", lambda *a, **k: started.append(k["env"]) or real(*a, **k))
    folder = ended(store, key="ih-secret-of-mine")
    assert started[0]["INHOUSE_API_KEY"] == "ih-secret-of-mine"
    written = [path.read_bytes() for path in folder.iterdir()]
    assert len(written) > 3 and not any(b"secret-of-mine" in content for content in written)


def test_job_without_result_or_process_is_lost(store: Store) -> None:
    store.create()
    folder = store.jobs / "20260101-000000-aaaa"
    folder.mkdir()
    (folder / "command.json").write_text(
        json.dumps({"function": "run:run", "request": {}, "parent": None, "started": "2026-01-01T00:00:00+00:00"})
    )
    (folder / "events.jsonl").write_text('{"event": "note"}\n{"half')
    assert jobs.describe(folder).status == "lost" and jobs.describe(folder).pid is None
    assert list(jobs.tail(folder)) == [{"event": "note"}]
    for text in ("1 0.5", f"{os.getpid()} 1.0", "99999999 5.0", "nonsense"):
        (folder / "pid").write_text(text)
        assert not jobs.alive(folder)
    for outcome, status in (({"value": {}}, "done"), ({"error": {"exit_code": 130, "message": "x"}}, "cancelled")):
        (folder / "result.json").write_text(json.dumps(outcome))
        (folder / "pid").unlink(missing_ok=True)
        assert jobs.describe(folder).status == status


def test_job_of_another_process_is_seen_alive_until_it_ends(store: Store) -> None:
    folder = jobs.submit(store, "run:run", MISSING, attached=False, offline=True)
    child = jobs._children.pop(folder)
    assert jobs.alive(folder) and jobs.describe(folder).status == "running"
    while jobs.alive(folder):
        pass
    assert jobs.describe(folder).status in ("failed", "running")
    child.wait()
    assert jobs.describe(folder).status == "failed"


def test_find_takes_the_newest_or_a_clear_beginning(store: Store) -> None:
    store.create()
    for name in ("20260101-aa", "20260102-bb", "20260102-bbb"):
        (store.jobs / name).mkdir()
    assert jobs.find(store, None).name == "20260102-bbb"
    assert jobs.find(store, "20260101").name == "20260101-aa"
    assert jobs.find(store, "20260102-bb").name == "20260102-bb"
    for unclear in ("20260102", "2027"):
        with pytest.raises(UserError):
            jobs.find(store, unclear)


def test_prune_keeps_the_newest_and_those_that_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "KEEP", 1)
    running = jobs.submit(store, "run:run", MISSING, attached=True, offline=True)
    for name in ("20990101-a", "20990102-b"):
        (store.jobs / name).mkdir()
    jobs.prune(store)
    assert {p.name for p in store.jobs.iterdir()} == {running.name, "20990102-b"}
    list(jobs.tail(running))


def test_cancel_leaves_a_note_for_the_job(store: Store) -> None:
    folder = ended(store)
    jobs.cancel(folder)
    assert (folder / "cancel").exists()
