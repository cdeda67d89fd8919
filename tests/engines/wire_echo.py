"""A child that speaks the wire without a model: it answers with the characters of the prompt, one a step.

A request whose prompt is `mute` hears nothing; `refuse` is refused for its length, `late` fails after a first delta;
`crash` ends the process; `garbage` sends what is no JSON. Embedding or scoring `break` fails as no engine should.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

from inhouse.core.run import die_with_parent
from inhouse.core.serving import Ask, Capabilities, Delta, EngineRefused, PairScores, Stats, Usage
from inhouse.engines.process import Reporter
from inhouse.engines.wire_child import Outbox, TookTooLong, serve, time_limit


class Echo:
    capabilities = Capabilities(
        constraints=frozenset({"regex"}), adapters=("law",), most_parallel=64, rerank="pairs" in sys.argv
    )
    context_length = 99

    def __init__(self) -> None:
        self.left: dict[int, tuple[str, Ask]] = {}
        self.asked: Ask | None = None

    def submit(self, uid: int, ask: Ask) -> None:
        self.asked = ask
        if ask.prompt == "refuse":
            raise EngineRefused("context", 1234, "pattern")
        if ask.prompt == "deep":
            raise RecursionError
        self.left[uid] = (str(ask.prompt), ask)

    def cancel(self, uid: int) -> None:
        self.left.pop(uid, None)

    def step(self, out: Outbox) -> bool:
        for uid, (text, ask) in list(self.left.items()):
            if text == "mute":
                continue
            if text == "crash":
                os._exit(3)
            if text == "garbage":
                for request in list(out.requests.values()):
                    request.connection.socket.sendall(b"{nonsense\n")
            if text == "ate":
                out.refuse(uid, EngineRefused("failed"))
                del self.left[uid]
                continue
            self.say(uid, text, ask, out)
        return any(text != "mute" for text, _ in self.left.values())

    def say(self, uid: int, text: str, ask: Ask, out: Outbox) -> None:
        self.left[uid] = (text[1:], ask)
        last = len(text) <= 1
        for index in range(ask.sampling.n):
            delta = Delta(text[:1], index)
            if last:
                delta.finish = "stop"
                delta.usage = Usage(5, 6, 7, 0.25, 0.5)
                delta.logprobs = [{"token": text}]
                delta.tool_calls = [{"index": 0}]
                delta.reasoning = "so"
            out.add(uid, delta)
        if last:
            del self.left[uid]
        if text.startswith("#") and len(self.left) < 8:
            time.sleep(0.002)

    def embed(self, texts: Sequence[str] | Sequence[Sequence[int]]) -> tuple[list[list[float]], int]:
        if not texts:
            raise EngineRefused("unsupported")
        if "break" in texts:
            raise RuntimeError("broken")
        return [[float(len(text)), 0.5] for text in texts], 9

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> PairScores:
        if ("break", "") in pairs:
            raise RuntimeError("broken")
        return PairScores([0.5] * len(pairs), 3, ())

    def tokenize(self, text: str, special: bool) -> list[int]:
        return [ord(letter) + special for letter in text]

    def detokenize(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))

    def render(self, ask: Ask) -> str:
        if ask.prompt == "deep":
            raise RecursionError
        try:
            with time_limit(0.1):
                while ask.adapter == "loop":
                    pass
        except TookTooLong:
            raise EngineRefused("invalid") from None
        return repr(ask)

    def stats(self) -> Stats:
        return Stats(running=len(self.left), cache_used=0.5)


if __name__ == "__main__":
    die_with_parent(os.getppid())
    reporter = Reporter()
    sys.exit(serve(Echo(), reporter))
