"""Guards of answers: they look and count, and hold nothing back. No request waits for them."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

from inhouse.core.serving import Ask, Delta, Usage
from inhouse.guard.answers import Alarm, Heard, alarms
from inhouse.guard.ready import compile_apart
from inhouse.serve.replies import Reply

SEARCHER = "numba"  # what finds personal data needs it
MOST_WAITING = 1000  # answers that have not been looked at; more are counted without a look
MOST_WAITING_BYTES = 32 * 2**20  # of what was said and what it was made from
log = logging.getLogger("inhouse.serve")


class Overheard(Reply):
    """A reply whose words are kept until a guard has looked at them: text, thoughts, and arguments of calls."""

    def __init__(self, reply: Reply, ask: Ask, wanted: Collection[Alarm]) -> None:
        self.reply = reply
        self.ask = ask
        self.wanted = wanted
        self._pieces: dict[tuple[int, str], list[str]] = {}

    @property
    def sent(self) -> bool:
        """Whether anybody has seen something."""
        return self.reply.sent

    async def add(self, deltas: list[Delta]) -> None:
        """Keep it, and send it."""
        self._keep(deltas)
        await self.reply.add(deltas)

    def push(self, deltas: list[Delta]) -> bool:
        """The same without waiting."""
        if taken := self.reply.push(deltas):
            self._keep(deltas)
        return taken

    def _keep(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            if delta.text:
                self._pieces.setdefault((delta.index, ""), []).append(delta.text)
            if delta.reasoning:
                self._pieces.setdefault((delta.index, "thoughts"), []).append(delta.reasoning)
            for call in delta.tool_calls or ():
                said = (call.get("function") or {}).get("arguments") or ""
                self._pieces.setdefault((delta.index, f"call {call.get('index')}"), []).append(said)

    async def finish(self, usage: Usage) -> None:
        """The answer is whole."""
        await self.reply.finish(usage)

    def reset(self) -> None:
        """Begin again."""
        self._pieces.clear()
        self.reply.reset()

    def heard(self) -> Heard:
        """What was said, beside what it was made from."""
        answer = "\n".join("".join(pieces) for pieces in self._pieces.values())
        if self.ask.messages is None:
            return Heard(answer, "", self.ask.prompt if isinstance(self.ask.prompt, str) else "")
        ours: list[str] = []
        theirs = [str(tool) for tool in self.ask.tools]
        for message in self.ask.messages:
            said = ours if message.get("role") in ("system", "developer") else theirs
            said.append(str(message.get("content") or ""))
            said += [str(call) for call in message.get("tool_calls") or ()]
        return Heard(answer, "\n".join(ours), "\n".join(theirs))


class Guards:
    """Looks at whole answers in one thread, one after the other."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "guard")
        self._looks: set[asyncio.Task[None]] = set()
        self._waiting_bytes = 0
        self._told = False
        self._ready = False

    def look(self, said: Overheard, then: Callable[[tuple[Alarm, ...] | None], None]) -> None:
        """Call `then` with what was found, in this event loop; with None where nobody could look."""
        if len(self._looks) >= MOST_WAITING:
            then(None)
            return
        task = asyncio.create_task(self._look(said, then))
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)

    async def close(self) -> None:
        """Look at what is left."""
        await asyncio.gather(*self._looks, return_exceptions=True)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _look(self, said: Overheard, then: Callable[[tuple[Alarm, ...] | None], None]) -> None:
        found: tuple[Alarm, ...] | None = None
        held = 0
        try:
            wanted = self._possible(said)
            if wanted:
                heard = said.heard()
                size = sum(map(sys.getsizeof, vars(heard).values()))
                if self._waiting_bytes and self._waiting_bytes + size > MOST_WAITING_BYTES:
                    return
                self._waiting_bytes += (held := size)
                found = await asyncio.get_running_loop().run_in_executor(self._thread, self._search, wanted, heard)
        except Exception:  # the answer counts whatever is wrong with a guard
            log.exception("an answer could not be looked at")
        finally:
            self._waiting_bytes -= held
            then(found)

    def _search(self, wanted: list[Alarm], heard: Heard) -> tuple[Alarm, ...]:
        """Runs in the guard's thread, the first time until what finds personal data is compiled elsewhere."""
        if "personal-data" in wanted and not self._ready:
            compile_apart()
            self._ready = True
        return alarms(wanted, heard)

    def _possible(self, said: Overheard) -> list[Alarm]:
        """What can be looked for: personal data neither beside token ids, which nobody can read, nor without numba."""
        wanted = list(said.wanted)
        if "personal-data" in wanted and find_spec(SEARCHER) is None:
            wanted.remove("personal-data")
            if not self._told:
                self._told = True
                log.error("no guard looks for personal data: it is found with the extra `data`, which is missing")
        elif "personal-data" in wanted and said.ask.messages is None and not isinstance(said.ask.prompt, str):
            wanted.remove("personal-data")
        return wanted
