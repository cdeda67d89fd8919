"""A child process under supervision: it reports when it is ready, ends with its parent, and is restarted.

A child writes one line of JSON on its standard output: `{"ready": {…}}` when it can work, or `{"error": {…}}`
(`InhouseError.to_dict`) when it cannot. Its standard error is its log; the last lines are kept for messages.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import IO, Any, Generic, Protocol, TypeVar

from inhouse.core.errors import InhouseError, UserError, from_dict
from inhouse.core.messages import text
from inhouse.core.settings import child_environment

LOG_LINES = 200
LINE_BYTES = 4096
STOP_GRACE_S = 5.0
CLOSE_S = 10.0
STOP = signal.SIGUSR1  # a parent's word that its child shall end
log = logging.getLogger("inhouse.engines")


@dataclass(frozen=True)
class Command:
    """What to run, and what messages call it."""

    name: str
    arguments: tuple[str, ...]
    load_timeout_s: float = 120.0
    environment: Mapping[str, str] = field(default_factory=dict)  # beside this process's own


def python_module(name: str, module: str, argument: str, load_timeout_s: float = 120.0) -> Command:
    """The command that runs one of our modules in this Python, with one argument.

    `-P` keeps the current folder off the import path: a stray `torch.py` there must not be run.
    """
    return Command(name, (sys.executable, "-P", "-m", module, argument), load_timeout_s)


# Who is told of a child as soon as it runs, long before it is ready: the supervisor in whose thread it is started.
_on_child: ContextVar[Callable[[Child], None] | None] = ContextVar("on_child", default=None)


class Child:
    """A running child process. It ends when this process ends, however that happens."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._report: dict[str, Any] | None = None
        self._failure: OSError | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._spawned = threading.Event()
        self._reported = threading.Event()
        self._ended = threading.Event()
        # Linux sends the parent-death signal when the *thread* that forked ends (prctl(2)): fork from a thread
        # that lives as long as the child, or a child started in a worker thread dies with that worker.
        self._readers: list[threading.Thread] = []
        threading.Thread(target=self._keep, name=f"keep {command.name}", daemon=True).start()
        self._spawned.wait()
        if self._failure is not None:
            raise UserError("process.not_started", name=command.name, reason=str(self._failure))
        if (adopt := _on_child.get()) is not None:
            adopt(self)

    @property
    def pid(self) -> int:
        """The child's process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the child has not ended yet."""
        return not self._ended.is_set()

    @property
    def last_line(self) -> str:
        """The last line of the child's log that says something."""
        return next((line for line in reversed(tuple(self.log)) if line), "-")

    def wait_ready(self) -> dict[str, Any]:
        """What the child reported when it became ready.

        Raises process.load_timeout (the child is ended), process.died, or the error that the child reported.
        """
        try:
            report = self.report(self.command.load_timeout_s)
            if report is None:
                raise UserError(
                    "process.load_timeout",
                    name=self.command.name,
                    seconds=f"{self.command.load_timeout_s:g}",
                    line=self.last_line,
                )
            return report
        except BaseException:  # also Ctrl-C: nothing is left running when start-up did not succeed
            self.stop(grace_s=0)
            raise

    def report(self, timeout_s: float) -> dict[str, Any] | None:
        """The child's report, or None when there is none within `timeout_s`. Raises as `wait_ready` does."""
        if not self._reported.wait(timeout_s):
            return None
        if self._report is None:
            raise self.died()
        if "error" in self._report:
            raise from_dict(self._report["error"])
        ready: dict[str, Any] = self._report["ready"]
        return ready

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the child has ended; False when it has not after `timeout_s`."""
        return self._ended.wait(timeout_s)

    def died(self) -> UserError:
        """The error that says how the child ended: by which signal or exit code, and its last words."""
        self._ended.wait(STOP_GRACE_S)
        code = None if self._process is None else self._process.poll()
        how = "?" if code is None else signal.Signals(-code).name if code < 0 else str(code)
        hint = text("process.memory") if how == "SIGKILL" else ""
        return UserError("process.died", name=self.command.name, exit=how, line=self.last_line, hint=hint)

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Ask the child to end, and end it by force after `grace_s` seconds. Safe to call twice."""
        assert self._process is not None
        if grace_s > 0:
            self._process.send_signal(STOP)
            if self.wait(grace_s):
                return
        self._process.kill()
        self.wait()

    def _keep(self) -> None:
        try:
            process = subprocess.Popen(
                self.command.arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={
                    **child_environment(offline=True),
                    **self.command.environment,
                },  # a child works on local files: hubs stay off
            )
        except OSError as error:
            self._failure = error
            self._spawned.set()
            return
        self._process = process
        self._readers = [
            threading.Thread(target=self._read_report, args=(process.stdout,), daemon=True),
            threading.Thread(target=self._read_log, args=(process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self._spawned.set()
        process.wait()
        for reader in self._readers:  # a grandchild may hold the pipes open: do not wait for it for ever
            reader.join(1.0)
        self._ended.set()
        self._reported.set()

    def _read_report(self, stream: IO[bytes]) -> None:
        for line in stream:
            if self._report is None and (report := _parse_report(line)) is not None:
                self._report = report
                self._reported.set()

    def _read_log(self, stream: IO[bytes]) -> None:
        for line in iter(lambda: stream.readline(LINE_BYTES), b""):
            self.log.append(line.decode("utf-8", "replace").rstrip())


def _parse_report(line: bytes) -> dict[str, Any] | None:
    try:
        report = json.loads(line)
    except ValueError:
        return None  # a library printed something
    return report if isinstance(report, dict) and report.keys() & {"ready", "error"} else None


def heed_only_parent(stop: Callable[[], object]) -> None:
    """In a child: call `stop` when the parent says so, and let other signals that end programs pass.

    systemd sends SIGTERM, and a terminal Ctrl-C, to every process of a service: what runs is for the parent to finish.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(STOP, lambda *_: stop())


class Reporter:
    """The child's side: holds the real standard output, so that nothing a library prints can spoil the report."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def ready(self, **facts: Any) -> None:
        """Tell the parent that work can begin."""
        self._write({"ready": facts})

    def error(self, error: InhouseError) -> None:
        """Tell the parent why work cannot begin."""
        self._write({"error": error.to_dict()})

    def _write(self, report: dict[str, Any]) -> None:
        self._out.write(json.dumps(report) + "\n")
        self._out.flush()


class Running(Protocol):
    """What a supervisor keeps: something that lives in a child process."""

    @property
    def process(self) -> Child: ...

    def healthy(self) -> bool: ...


R = TypeVar("R", bound=Running)


@dataclass(frozen=True)
class Backoff:
    """How a supervisor waits: `first_s` after a crash, doubled after each further one, `most_s` at most.

    A child that lived for `steady_s` counts as recovered. It is asked for its health every `check_s` seconds and
    is restarted after `misses` refusals in a row.
    """

    first_s: float = 0.5
    most_s: float = 30.0
    steady_s: float = 60.0
    check_s: float = 5.0
    misses: int = 3


class Supervisor(Generic[R]):
    """Keeps one child running: a crashed or hung one is started again, after a growing pause."""

    def __init__(self, start: Callable[[], R], backoff: Backoff = Backoff()) -> None:
        self._start = start
        self._backoff = backoff
        self._closing = threading.Event()
        self.restarts = 0
        self.last_error: InhouseError | None = None
        self._loading: Child | None = None
        self._current: R | None = start()  # the first start's error is the caller's
        self._thread = threading.Thread(target=self._watch, name="supervise", daemon=True)
        self._thread.start()

    @property
    def current(self) -> R | None:
        """What runs now; None while it is being restarted."""
        running = self._current
        return running if running is not None and running.process.running else None

    def close(self, grace_s: float = STOP_GRACE_S) -> None:
        """Stop the child and keep it stopped; one that still loads is ended at once."""
        self._closing.set()
        if (loading := self._loading) is not None:
            loading.stop(grace_s=0)
        if (running := self._current) is not None:
            running.process.stop(grace_s)
        self._thread.join(CLOSE_S)

    def _watch(self) -> None:
        crashes = 0
        while not self._closing.is_set():
            began = time.monotonic()
            if self._current is not None:
                self._stay_with(self._current)
            if self._closing.is_set():
                return
            crashes = 1 if time.monotonic() - began >= self._backoff.steady_s else crashes + 1
            pause = min(self._backoff.first_s * 2.0 ** min(crashes - 1, 16), self._backoff.most_s)
            log.error("starting again in %.1f s (time %d in a row): %s", pause, crashes, self.last_error)
            if not self._closing.wait(pause):
                self._start_again()

    def _stay_with(self, running: R) -> None:
        """Return when the child has ended, of itself or because it no longer answered."""
        missed = 0
        while not running.process.wait(self._backoff.check_s):
            missed = 0 if running.healthy() else missed + 1
            if missed >= self._backoff.misses:
                self.last_error = UserError("process.hung", name=running.process.command.name)
                running.process.stop(grace_s=0)
                return
        if not self._closing.is_set():
            self.last_error = running.process.died()

    def _start_again(self) -> None:
        self._current = None
        _on_child.set(self._adopt)  # this thread's own: nobody else starts children in it
        try:
            started = self._start()
        except InhouseError as error:
            self.last_error = error
            return
        finally:
            self._loading = None
        self._current = started
        self.restarts += 1
        if self._closing.is_set():  # closed while the model was loading
            started.process.stop()

    def _adopt(self, child: Child) -> None:
        self._loading = child
        if self._closing.is_set():  # `close` may have looked before the child was there
            child.stop(grace_s=0)
