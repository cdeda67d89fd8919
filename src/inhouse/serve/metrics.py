"""Numbers of the gateway for Prometheus, under vLLM's names where the meaning is the same.

Recording is on the path of every request, so it is a few additions to plain lists (the client library's own counters
take 2 µs each); prometheus_client writes them out when somebody looks.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from inhouse.serve.measured import CLIENT_LEFT, Measured

Labels = tuple[str, ...]
Reading = tuple[str, str, dict[Labels, float]]  # a gauge: its name, what it says, and its values
WHO = ("model_name", "engine")
FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
BETWEEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
WHOLE_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
STAGE_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240)
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
CHOICES = (1, 2, 5, 10, 20)
OURS, VLLM = "inhouse_", "vllm:"
TOGETHER = 64  # requests
TOGETHER_GAPS = 4096


class Counts:
    """A counter by labels."""

    def __init__(self, name: str, says: str, labels: Labels) -> None:
        self.name, self.says, self.labels = name, says, labels
        self.values: dict[Labels, float] = {}

    def add(self, labels: Labels, amount: float = 1) -> None:
        """Count."""
        self.values[labels] = self.values.get(labels, 0) + amount

    def add_all(self, labels: Iterable[Labels]) -> None:
        """Count each of these."""
        for each, amount in Counter(labels).items():
            self.add(each, amount)

    def family(self, prefix: str, key: str | None = None) -> Metric:
        """As Prometheus gets it; with `key`, without what other keys did."""
        family = CounterMetricFamily(prefix + self.name, self.says, labels=self.labels)
        at = self.labels.index("key") if "key" in self.labels else None
        for labels, value in list(self.values.items()):
            if at is None or key in (None, labels[at]):
                family.add_metric(labels, value)
        return family


class Spread:
    """A histogram by labels: counts per bucket, and the sum."""

    def __init__(self, name: str, says: str, bounds: tuple[float, ...], labels: Labels = WHO) -> None:
        self.name, self.says, self.bounds, self.labels = name, says, bounds, labels
        self.values: dict[Labels, list[float]] = {}

    def add(self, labels: Labels, values: Sequence[float]) -> None:
        """Sort these in."""
        if not values:
            return
        row = self.values.get(labels)
        if row is None:
            row = self.values[labels] = [0.0] * (len(self.bounds) + 2)
        for value in values:
            row[bisect_left(self.bounds, value)] += 1
            row[-1] += value

    def family(self, prefix: str) -> Metric:
        """As Prometheus gets it."""
        family = HistogramMetricFamily(prefix + self.name, self.says, labels=self.labels)
        names = [str(float(bound)) for bound in self.bounds] + ["+Inf"]
        for labels, row in list(self.values.items()):
            seen, buckets = 0.0, []
            for name, count in zip(names, row, strict=False):
                seen += count
                buckets.append((name, seen))
            family.add_metric(labels, buckets, row[-1])
        return family


@dataclass(frozen=True)
class Gauges:
    """What is asked when somebody looks: (name, what it says, {labels: value})."""

    read: Callable[[], Iterable[Reading]]


class Metrics:
    """The numbers of one gateway."""

    def __init__(self, gauges: Gauges, vllm_names: bool = False, price_per_hour: float | None = None) -> None:
        self._gauges = gauges
        self._price = price_per_hour
        self._prefixes = (OURS, VLLM) if vllm_names else (OURS,)
        self._busy_s = 0.0
        self._busy_since: float | None = None
        self._inside = 0
        self._answered = 0
        self._unseen: list[Measured] = []  # finished, and not counted yet
        self._unseen_gaps = 0
        self._holders: dict[str, str] = {}  # name of a key -> the tenant whose figures stand below it
        self.requests = Counts("requests", "Requests by HTTP status and key.", (*WHO, "key", "status"))
        self.success = Counts("request_success", "Answers by the reason they ended.", (*WHO, "finished_reason"))
        self.prompt_tokens = Counts("prompt_tokens", "Prompt tokens processed.", (*WHO, "key"))
        self.answer_tokens = Counts("generation_tokens", "Tokens generated.", (*WHO, "key"))
        self.prefix_queries = Counts("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", WHO)
        self.prefix_hits = Counts("prefix_cache_hits", "Prompt tokens found in the prefix cache.", WHO)
        self.cache = Counts("answer_cache", "Requests by what the answer cache did.", ("model_name", "result"))
        self.guard = Counts(
            "guard_answers", "Answers that guards looked at, by what they found.",
            ("model_name", "deployment", "arm", "result"),
        )  # fmt: skip
        self.cancelled = Counts("request_cancelled", "Requests whose client left before the end.", WHO)
        self.switches = Counts("release_switches", "Changes of the served release.", ("result",))
        self.refused = Counts("requests_refused", "Requests refused before they had a release.", ("status", "code"))
        self.log_dropped = Counts("request_log_dropped", "Lines that the request log could not take.", ())
        self.log_dropped.add((), 0)  # told before the first one, so that a rise is seen
        self.first_token = Spread("time_to_first_token_seconds", "Until the first token.", FIRST_TOKEN_S)
        self.between = Spread("inter_token_latency_seconds", "Between two pieces of an answer.", BETWEEN_S)
        self.whole = Spread("e2e_request_latency_seconds", "Until the last token.", WHOLE_S)
        self.queue = Spread("request_queue_time_seconds", "In the queue.", STAGE_S)
        self.prefill = Spread("request_prefill_time_seconds", "From the turn to the first token.", STAGE_S)
        self.decode = Spread("request_decode_time_seconds", "From the first token to the last.", STAGE_S)
        self.prompts = Spread("request_prompt_tokens", "Prompt tokens of a request.", TOKENS)
        self.answers = Spread("request_generation_tokens", "Generated tokens of a request.", TOKENS)
        self.choices = Spread("request_params_n", "Answers asked for.", CHOICES)
        self.most = Spread("request_params_max_tokens", "Longest answer asked for.", TOKENS)

    def enter(self) -> None:
        """A request is being worked on: the machine is busy."""
        if self._inside == 0:
            self._busy_since = time.monotonic()
        self._inside += 1

    def leave(self) -> None:
        """It is done."""
        self._inside -= 1
        if self._inside == 0 and self._busy_since is not None:
            self._busy_s += time.monotonic() - self._busy_since
            self._busy_since = None

    def observe(self, seen: Measured) -> None:
        """Count one finished request; done for many at once, as the same few rows are added to."""
        if self._holders.get(seen.key) != seen.tenant:
            self._hand_over(seen)
        self._unseen.append(seen)
        self._unseen_gaps += len(seen.gaps)
        if len(self._unseen) >= TOGETHER or self._unseen_gaps > TOGETHER_GAPS:
            self._catch_up()

    def _hand_over(self, seen: Measured) -> None:
        """A key has the name of one that was revoked: that one's figures are not its own."""
        if seen.key in self._holders:
            self._catch_up()
            for counts in (self.requests, self.prompt_tokens, self.answer_tokens):
                at = counts.labels.index("key")
                counts.values = {who: value for who, value in counts.values.items() if who[at] != seen.key}
        self._holders[seen.key] = seen.tenant

    def _catch_up(self) -> None:
        unseen, self._unseen, self._unseen_gaps = self._unseen, [], 0
        found: dict[Labels, list[Measured]] = {}
        for seen in unseen:
            found.setdefault((seen.model, seen.engine), []).append(seen)
        for who, together in found.items():
            self._outcomes(who, together)
            answers = [seen for seen in together if seen.first is not None]
            self._tokens(who, answers)
            self._times(who, answers)
            self._read(who, [seen for seen in together if seen.first is None and seen.status == 200])
        for seen in unseen:
            seen.gaps = []  # recent requests are kept, but not the pause before each token: megabytes

    def _outcomes(self, who: Labels, together: list[Measured]) -> None:
        self.requests.add_all((*who, seen.key, str(seen.status)) for seen in together)
        self.cache.add_all((seen.model, seen.cache) for seen in together if seen.cache != "-")
        for seen in together:
            if seen.alarms is not None:
                role = "-" if seen.arm is None else seen.arm.role
                self.guard.add_all((seen.model, seen.deployment, role, each) for each in seen.alarms or ("none",))
        if left := sum(seen.status == CLIENT_LEFT for seen in together):
            self.cancelled.add(who, left)
        self._answered += sum(seen.status == 200 for seen in together)

    def _tokens(self, who: Labels, answers: list[Measured]) -> None:
        spent = [(seen.key, usage) for seen in answers if (usage := seen.usage).prompt or usage.answer]
        for key in {key for key, _ in spent}:
            mine = [usage for name, usage in spent if name == key]
            self.prompt_tokens.add((*who, key), sum(usage.prompt for usage in mine))
            self.answer_tokens.add((*who, key), sum(usage.answer for usage in mine))
        if spent:
            self.prefix_queries.add(who, sum(usage.prompt for _, usage in spent))
            self.prefix_hits.add(who, sum(usage.cached for _, usage in spent))
            self.prompts.add(who, [usage.prompt for _, usage in spent])
            self.answers.add(who, [usage.answer for _, usage in spent])

    def _read(self, who: Labels, vectors: list[Measured]) -> None:
        """Tokens of requests that are answered with vectors and scores."""
        for seen in vectors:
            if read := seen.usage.prompt:
                self.prompt_tokens.add((*who, seen.key), read)

    def _times(self, who: Labels, answers: list[Measured]) -> None:
        self.first_token.add(who, _known(seen.first_token_s for seen in answers))
        self.queue.add(who, _known(seen.queue_s for seen in answers))
        self.prefill.add(who, _known(seen.prefill_s for seen in answers))
        self.decode.add(who, _known(seen.decode_s for seen in answers))
        self.choices.add(who, [seen.choices for seen in answers])
        self.most.add(who, [seen.asked_tokens for seen in answers])
        self.between.add(who, [gap for seen in answers for gap in seen.gaps])
        finished = [seen for seen in answers if seen.finish is not None]
        self.success.add_all((*who, str(seen.finish)) for seen in finished)
        self.whole.add(who, [seen.total_s for seen in finished])

    def busy_s(self) -> float:
        """Seconds in which at least one request was worked on."""
        return self._busy_s + (0.0 if self._busy_since is None else time.monotonic() - self._busy_since)

    @property
    def answered(self) -> int:
        """Answers so far."""
        self._catch_up()
        return self._answered

    def cost_per_1k(self) -> float | None:
        """Price of 1,000 answers: busy hours at the stated price of this machine; None without a price or answers."""
        if self._price is None or not self.answered:
            return None
        return self._price * self.busy_s() / 3600 / self.answered * 1000

    def text(self, key: tuple[str, str] | None = None, more: Sequence[Reading] = ()) -> bytes:
        """The numbers in Prometheus' text format, `more` among them.

        With `key`, its name and its tenant, without what other keys did.
        """
        registry = CollectorRegistry()
        name = None if key is None else key[0] if self._holders.get(key[0]) == key[1] else ""  # no key is named so
        registry.register(View(self, name, more))
        return generate_latest(registry)

    def families(self, key: str | None, more: Sequence[Reading] = ()) -> Iterator[Metric]:
        """Everything, as prometheus_client writes it."""
        self._catch_up()
        recorded = [each for each in vars(self).values() if isinstance(each, Counts | Spread)]
        for prefix in self._prefixes:
            for each in recorded:
                yield each.family(prefix, key) if isinstance(each, Counts) else each.family(prefix)
            for name, says, values in (*self._gauges.read(), *more, *self._own()):
                family = GaugeMetricFamily(prefix + name, says, labels=WHO if any(values) else ())
                for labels, value in values.items():
                    family.add_metric(labels, value)
                yield family

    def _own(self) -> Iterator[Reading]:
        yield "busy_seconds", "Seconds in which at least one request was worked on.", {(): self.busy_s()}
        if (cost := self.cost_per_1k()) is not None:
            yield "cost_per_1k_requests", "Price of 1,000 answers at serve.price_per_hour.", {(): cost}


class View(Collector):
    """The numbers as one key may see them."""

    def __init__(self, metrics: Metrics, key: str | None, more: Sequence[Reading] = ()) -> None:
        self._metrics = metrics
        self._key = key
        self._more = more

    def collect(self) -> Iterator[Metric]:
        """For prometheus_client."""
        return self._metrics.families(self._key, self._more)


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]
