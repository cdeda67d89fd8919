"""Child processes: readiness, timeouts, how they end, and that they are started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from inhouse.core.errors import InhouseError, UserError
from inhouse.engines.process import Backoff, Child, Command, Supervisor

READY = "import json,sys; print(json.dumps({'ready': {'n': 1}}), flush=True); "
SLEEP = "import time; time.sleep(60)"


def python(code: str, load_timeout_s: float = 20.0) -> Command:
    return Command("the child", (sys.executable, "-c", code), load_timeout_s)


def test_child_that_reports_is_ready_and_stops_when_asked() -> None:
    child = Child(python("print('noise'); " + READY + SLEEP))
    assert child.wait_ready() == {"n": 1}
    assert child.running
    child.stop()
    assert not child.running
    child.stop()


def test_child_that_ignores_the_request_is_ended_by_force() -> None:
    child = Child(python("import signal; signal.signal(signal.SIGUSR1, signal.SIG_IGN); " + READY + SLEEP))
    child.wait_ready()
    child.stop(grace_s=0.2)
    assert not child.running and child.died().facts["exit"] == "SIGKILL"


def test_child_goes_on_when_its_whole_group_is_told_to_end_until_its_parent_says_so() -> None:
    heed = "import sys; from inhouse.engines.process import heed_only_parent as heed; heed(sys.exit); "
    child = Child(python(heed + READY + SLEEP))
    child.wait_ready()
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(child.pid, number)
    assert not child.wait(0.3)
    child.stop(grace_s=10.0)
    assert child.died().facts["exit"] == "0"


def test_child_that_is_slow_is_stopped_with_its_last_line() -> None:
    child = Child(python("import sys; print('reading block 3', file=sys.stderr, flush=True); " + SLEEP, 1.5))
    with pytest.raises(UserError) as error:
        child.wait_ready()
    assert error.value.code == "process.load_timeout"
    assert error.value.facts["line"] == "reading block 3"
    assert not child.running


def test_child_killed_by_a_signal_names_it() -> None:
    child = Child(python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"))
    with pytest.raises(UserError) as error:
        child.wait_ready()
    assert (error.value.code, error.value.facts["exit"]) == ("process.died", "SIGSEGV")


def test_child_that_fails_keeps_the_end_of_its_log() -> None:
    child = Child(python("import sys; [print('line', n, file=sys.stderr) for n in range(5000)]; sys.exit(3)"))
    with pytest.raises(UserError) as error:
        child.wait_ready()
    assert error.value.facts["exit"] == "3" and error.value.facts["line"] == "line 4999"
    assert len(child.log) == 200


def test_child_that_reports_an_error_raises_the_same_error() -> None:
    fault = UserError("llamacpp.no_file", path="m.gguf").to_dict()
    child = Child(python(f"import json; print(json.dumps({{'error': {fault!r}}}))"))
    with pytest.raises(UserError) as error:
        child.wait_ready()
    assert error.value.code == "llamacpp.no_file" and error.value.facts["path"] == "m.gguf"


def test_child_whose_program_is_missing_is_an_error_of_ours() -> None:
    with pytest.raises(UserError) as error:
        Child(Command("nothing", ("/nowhere/program",)))
    assert error.value.code == "process.not_started"


def test_child_outlives_the_thread_that_started_it_but_not_the_process() -> None:
    code = (
        "import os, sys, threading, time\n"
        "from inhouse.engines.process import Child, Command\n"
        "body = 'from inhouse.core.run import die_with_parent; die_with_parent(' + str(os.getpid()) + ')\\n'\n"
        "body += 'import json, time; print(json.dumps({\"ready\": {}}), flush=True); time.sleep(60)'\n"
        "made = []\n"
        "def start(): made.append(Child(Command('c', (sys.executable, '-c', body)))); made[0].wait_ready()\n"
        "t = threading.Thread(target=start); t.start(); t.join()\n"
        "print(made[0].pid, made[0].wait(0.5), flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, ended = parent.stdout.readline().split()
    assert ended == "False"
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == "zombie")


class Served:
    """A child, as a supervisor keeps it."""

    def __init__(self, code: str = READY + SLEEP, well: bool = True) -> None:
        self.process = Child(python(code))
        self.process.wait_ready()
        self.well = well

    def healthy(self) -> bool:
        return self.well


def wait_until(met, seconds: float = 20.0) -> bool:
    """Poll for what another process does; there is nothing to wait on."""
    pause = threading.Event()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if met():
            return True
        pause.wait(0.02)
    return False


FAST = Backoff(first_s=0.01, most_s=0.05, check_s=0.05, misses=2)


def test_supervisor_starts_a_crashed_child_again_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    supervisor = Supervisor(Served, FAST)
    try:
        first = supervisor.current
        assert first is not None
        os.kill(first.process.pid, signal.SIGKILL)
        assert wait_until(lambda: supervisor.restarts == 1)
        again = supervisor.current
        assert again is not None and again.process.pid != first.process.pid
        assert supervisor.last_error is not None and supervisor.last_error.facts["exit"] == "SIGKILL"
        [line] = [each for each in caplog.records if each.name == "inhouse.engines"]
        assert line.levelname == "ERROR" and "SIGKILL" in line.getMessage()
    finally:
        supervisor.close()
    assert supervisor.current is None


def test_supervisor_restarts_a_child_that_no_longer_answers() -> None:
    made: list[Served] = []

    def start() -> Served:
        made.append(Served(well=bool(made)))
        return made[-1]

    supervisor = Supervisor(start, FAST)
    try:
        assert wait_until(lambda: supervisor.restarts == 1)
        assert supervisor.last_error is not None and supervisor.last_error.code == "process.hung"
        assert not made[0].process.running
    finally:
        supervisor.close()


def test_supervisor_goes_on_trying_when_a_restart_fails() -> None:
    tries: list[int] = []

    def start() -> Served:
        tries.append(1)
        if len(tries) in (2, 3):
            raise UserError("process.hung", name="the child")
        return Served()

    supervisor = Supervisor(start, FAST)
    try:
        assert supervisor.current is not None
        supervisor.current.process.stop(grace_s=0)
        assert wait_until(lambda: supervisor.restarts == 1)
        assert len(tries) == 4
    finally:
        supervisor.close()


def test_supervisor_whose_first_start_fails_raises_that_error() -> None:
    with pytest.raises(InhouseError):
        Supervisor(lambda: Served("raise SystemExit(1)"))


def test_supervisor_that_closes_during_a_restart_does_not_wait_for_the_load() -> None:
    made: list[Served] = []
    loading = threading.Event()

    def start() -> Served:
        if made:
            loading.set()
        made.append(Served(READY + SLEEP if not made else SLEEP))
        return made[-1]

    supervisor = Supervisor(start, FAST)
    made[0].process.stop(grace_s=0)
    assert loading.wait(10)
    began = time.monotonic()
    supervisor.close()
    assert time.monotonic() - began < 5 and supervisor.current is None
