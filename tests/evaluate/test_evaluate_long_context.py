"""Reading of long texts: what a window sees, what is scored and counted, who finds what is hidden."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from inhouse.api.long_context import LongContextRequest, bench_long_context
from inhouse.cli.long_context_views import long_context as view
from inhouse.compress.convert import convert
from inhouse.core.errors import UserError
from inhouse.core.run import Events
from inhouse.engines.llamacpp import LlamaCppSettings
from inhouse.evaluate.long_context.haystack import CHOICES, Haystack, documentation, needle, scored_places
from inhouse.evaluate.long_context.kept import Readings
from inhouse.evaluate.long_context.llama_reader import open_reader
from inhouse.evaluate.long_context.measure import Bench, Grid, summed
from inhouse.evaluate.long_context.pace import Pace
from inhouse.evaluate.long_context.picture import draw
from inhouse.evaluate.long_context.reader import Read
from inhouse.evaluate.long_context.result import KeptMemory, LongContext
from inhouse.evaluate.long_context.strategies import STRATEGIES, KeptShape
from inhouse.evaluate.long_context.torch_reader import SINKS, TorchReader

TEXT = "".join(f"Line {number} says that wheat and corn went {number % 7} times.\n" for number in range(400))


class Letters:
    """A tokenizer of characters."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


@dataclass
class ByEye:
    """Finds a number if its sentence stands among the last `window` letters: what a window should come to."""

    window: int
    per_letter: float = 0.0

    def read(self, ids: Sequence[int], places: Sequence[int], choices: Sequence[Sequence[int]]) -> Read:
        seen = "".join(map(chr, ids))[-self.window :]
        known = [f"is{''.join(map(chr, choice))}." in seen for choice in choices]
        right = next((choice for choice, there in zip(choices, known, strict=True) if there), [ord("?")] * 8)
        return Read([-1.0] * len(places), [0.0 if there else -9.0 for there in known], list(right), 0.001, None)

    def bytes_per_token(self) -> float | None:
        return None

    def close(self) -> None:
        pass


def run(reader: Any, lengths: Sequence[int] = (600,), depths: Sequence[float] = (0, 50, 100), s: float = 60) -> Bench:
    grid = Grid([STRATEGIES["full"], STRATEGIES["sliding"]], lengths, depths, 1, 0)
    return Bench(grid, Haystack(TEXT, Letters(), [1]), lambda one, length: reader, Events(), time.monotonic() + s)


def test_needles_are_found_where_the_window_reaches_and_controls_never() -> None:
    groups = run(ByEye(window=400)).run()
    assert [[one.exact for one in group.needles] for group in groups] == [[False, True, True]] * 2
    assert [[one.likeliest for one in group.needles] for group in groups] == [[False, True, True]] * 2
    assert all(group.control and not group.control.exact and not group.control.likeliest for group in groups)
    everywhere = run(ByEye(window=10_000)).run()
    assert all(group.found == 3 and not group.control.exact for group in everywhere if group.control)


def test_prompt_has_the_length_asked_for_and_hides_the_sentence_where_it_should() -> None:
    hay, hidden = Haystack(TEXT, Letters(), [1]), needle(0, 800, 0)
    for depth, low, high in ((0, 0, 2), (50, 300, 410), (100, 650, 800)):
        prompt = hay.prompt(800, hidden, depth)
        read = Letters().decode(prompt.ids)
        assert len(prompt.ids) + len(prompt.choices[0]) == 800
        assert read.count(hidden.number) == 1 and low <= read.index(hidden.sentence) <= high
        assert read.endswith(hidden.question) and len({*map(tuple, prompt.choices)}) == CHOICES
    at = Letters().decode(hay.prompt(800, hidden, 50).ids).index(hidden.sentence)
    assert Letters().decode(hay.prompt(800, hidden, 50).ids)[at - 1] == "\n"  # between lines, not within one
    assert hidden.number not in Letters().decode(hay.prompt(800, hidden, None).ids)
    assert needle(0, 800, 0) == hidden != needle(0, 800, 1)


def test_texts_too_short_for_a_needle_and_files_too_short_for_a_text_are_refused() -> None:
    hay = Haystack(TEXT, Letters(), [])
    with pytest.raises(UserError, match="too few to hide"):
        hay.prompt(60, needle(0, 60, 0), 0)
    with pytest.raises(UserError, match="longer file"):
        hay.check(10**6)
    assert len(documentation()) > 300_000


@pytest.mark.parametrize("length", [2, 7, 64, 1000, 8192])
def test_scored_places_lie_in_their_part_once_each(length: int) -> None:
    parts = scored_places(length)
    flat = [place for part in parts for block in part for place in block]
    assert flat == sorted(set(flat)) and flat[0] >= 1 and flat[-1] < length


def test_blocks_sum_losses_and_leave_unknown_tokens_out() -> None:
    assert summed([[[1, 2], [5]], [[9]]], [-1.0, None, -0.5, -2.0]) == [[(1.0, 1), (0.5, 1)], [(2.0, 1)]]


def test_what_is_measured_is_kept_after_every_reading() -> None:
    bench = run(ByEye(window=9999), lengths=(600, 700))
    seen: list[tuple[int, int]] = []
    bench.keep = lambda groups: seen.append((len(groups), len(groups[-1].needles)))
    groups = bench.run()
    needles = len(groups[0].needles)
    assert needles > 1 and groups[-1].strategy == "sliding" and groups[-1].length == 700
    read = [(number, found) for number in range(1, 5) for found in range(needles + 1)]
    assert list(dict.fromkeys(seen)) == read  # the control first, then one needle after the other


@dataclass
class Mortal(ByEye):
    """Counts the prompts that it reads, calibration left out, and is killed at one of them."""

    dies_at: int = 10**6
    prompts: int = 0

    def read(self, ids: Sequence[int], places: Sequence[int], choices: Sequence[Sequence[int]]) -> Read:
        if ids[0] == 1:  # what begins a prompt, and no text
            self.prompts += 1
            if self.prompts == self.dies_at:
                raise KeyboardInterrupt
        return super().read(ids, places, choices)


def test_run_that_was_killed_goes_on_with_the_readings_that_it_has(tmp_path: Path) -> None:
    path, whole = tmp_path / "of" / "readings.jsonl", run(ByEye(window=400)).run()
    first = run(Mortal(window=400, dies_at=3))
    first.readings = Readings(path, "same")
    with pytest.raises(KeyboardInterrupt):
        first.run()
    with path.open("ab") as file:
        file.write(b'{"asked": "same"\xff\n' + b"[" * 100_000)  # damaged
        file.write(b'\n{"asked": "same", "na')  # cut off by the kill
    reader = Mortal(window=400)
    again = run(reader)
    again.readings = Readings(path, "same")
    assert again.readings.get("full 600 0 0") is not None and again.readings.get("full 600 0 1") is None
    assert again.run() == whole
    assert reader.prompts == 2 * (1 + 3) - 2
    last = run(Mortal(window=400, dies_at=1), s=0.5)
    last.readings = Readings(path, "same")
    assert last.run() == whole  # nothing is read, so that no time is needed
    assert Readings(path, "other").get("full 600 control") is None


def test_pace_goes_through_what_was_read_and_grows_with_the_square() -> None:
    pace = Pace()
    assert not pace.known and pace.seconds(100) == 0.0
    pace.add(100, 1.0)
    assert pace.seconds(200) == pytest.approx(2.0)
    pace.add(200, 3.0)  # 0.005 n + 0.00005 n²
    assert pace.seconds(100) == pytest.approx(1.0) and pace.seconds(400) == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("fixed", "layers", "attention"),
    [(0.05, 1e-3, 2.5e-7), (0.0, 1e-3, 2.5e-7), (0.2, 1e-3, 0.0), (0.0, 0.0, 1e-7), (0.3, 0.0, 0.0)],
)
def test_pace_of_three_short_texts_foretells_a_long_one(fixed: float, layers: float, attention: float) -> None:
    pace = Pace()
    for size in (128, 512, 2048):
        pace.add(size, fixed + layers * size + attention * size**2)
    foretold = fixed + layers * 32_768 + attention * 32_768**2
    assert pace.seconds(32_768) == pytest.approx(foretold, rel=1e-3)


def test_pace_is_never_negative_and_follows_noise_to_no_extreme() -> None:
    draw = np.random.default_rng(0)
    ratios = []
    for _ in range(200):
        pace = Pace()
        for size in (128, 512, 2048):
            pace.add(size, (0.05 + 1e-3 * size + 2.5e-7 * size**2) * draw.uniform(0.97, 1.03))
        least = [pace.seconds(size) for size in (1, 100, 600, 3000, 32_768)]
        assert least == sorted(least) and least[0] >= 0
        ratios.append(least[-1] / (0.05 + 1e-3 * 32_768 + 2.5e-7 * 32_768**2))
    assert 0.8 < float(np.median(ratios)) < 1.25
    falling = Pace()
    for size, seconds in ((128, 1.0), (512, 0.5), (2048, 0.4)):
        falling.add(size, seconds)
    assert 0.4 <= falling.seconds(32_768) < 7  # no more than as the longest, token by token


def test_estimate_reads_three_lengths_and_no_text_that_takes_too_much_of_the_time() -> None:
    bench = run(ByEye(window=9999), lengths=(600, 5000))
    bench._calibrate()
    assert sorted(bench.paces["full"]._seen) == [128, 512, 2048]
    hurried = run(ByEye(window=9999), lengths=(600, 5000))
    hurried.deadline = time.monotonic()
    hurried._calibrate()
    assert sorted(hurried.paces["full"]._seen) == [128]


def test_strategy_that_opens_no_long_text_is_calibrated_with_short_ones() -> None:
    bench = run(ByEye(window=9999), lengths=(600, 5000))
    whole = bench.open

    def short_only(one: Any, length: int) -> Any:
        if length > 600:
            raise UserError("long_context.quanto")
        return whole(one, length)

    bench.open = short_only
    bench._calibrate()
    assert sorted(bench.paces["full"]._seen) == [128, 512, 600]


def test_what_time_is_too_short_for_is_refused_and_the_rest_is_measured() -> None:
    class Slow(Pace):
        def seconds(self, tokens: int) -> float:
            return 1e6 if tokens > 600 else 0.0

    bench = run(ByEye(window=9999), lengths=(600, 5000))
    bench.paces["full"], bench.controls["full"] = Slow(), Slow()
    groups = {(group.strategy, group.length): group for group in bench.run()}
    assert groups["full", 5000].refused and "--minutes" in groups["full", 5000].refused
    assert groups["full", 600].found == 3 and groups["sliding", 5000].found == 3


@pytest.fixture(scope="module")
def tiny() -> Any:
    """A random Llama of 128 positions."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=60, num_hidden_layers=2, max_position_embeddings=128, **sizes)
    ).eval()


def logprobs(model: Any, ids: Sequence[int], **more: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(torch.tensor([list(ids)]), use_cache=False, **more).logits[0].log_softmax(-1)


def test_full_reading_scores_as_one_plain_pass(tiny: Any) -> None:
    ids = [(7 * at) % 60 for at in range(90)]
    reader = TorchReader(tiny)
    read = reader.read(ids, [1, 40, 89], [[3, 4, 5], [6, 7, 8]])
    whole = logprobs(tiny, [*ids, 3, 4, 5])
    assert read.scored == pytest.approx([float(whole[place - 1, ids[place]]) for place in (1, 40, 89)], abs=1e-4)
    assert read.chosen[0] == pytest.approx(
        sum(float(whole[89 + at, token]) for at, token in enumerate((3, 4, 5))), abs=1e-4
    )
    greedy = list(ids)
    for _ in range(3):
        greedy.append(int(logprobs(tiny, greedy)[-1].argmax()))
    assert read.answer == greedy[90:]
    shape = KeptShape(layers=2, kv_heads=2, head_size=8, bits=32)
    assert reader.bytes_per_token() == shape.bytes_per_token(STRATEGIES["full"]) == 2 * 2 * 2 * 8 * 4


def test_sliding_reads_as_a_masked_pass_until_the_window_moves_and_then_keeps_its_size(tiny: Any) -> None:
    import torch

    window, ids = 16, [(11 * at + at // 9) % 60 for at in range(120)]
    reader = TorchReader(tiny, "sliding", window)
    early = reader.read(ids[:20], [19], [[1]])  # no first token has moved yet
    place = torch.arange(20)
    seen = (place[None] <= place[:, None]) & ((place[:, None] - place[None] < window) | (place[None] < SINKS))
    mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
    assert early.scored[0] == pytest.approx(float(logprobs(tiny, ids[:20], attention_mask=mask)[18, ids[19]]), abs=1e-4)
    late = reader.read(ids, [119], [[1, 2]])
    assert late.kept_bytes is not None and late.kept_bytes / 256 <= 2 * window + SINKS
    assert late.scored[0] == pytest.approx(slow_sliding(tiny, ids, window), abs=1e-4)


def slow_sliding(model: Any, ids: Sequence[int], window: int) -> float:
    """The last token's log-probability, with keys and values of every token made under its own piece's view.

    By hand: in each piece the first tokens stand right before the window, and each token sees them and the last ones.
    Only values that a piece made are kept, so this follows the same recurrence without any cache of transformers.
    """
    import torch
    from transformers.cache_utils import DynamicCache

    kept: list[tuple[Any, Any]] = []
    last = None
    for start in range(0, len(ids), window):
        piece = list(ids[start : start + window])
        before = min(start, window - 1) if start > window - 1 + SINKS else start
        cache = DynamicCache()
        with torch.inference_mode():
            if start > window - 1 + SINKS:
                at = torch.arange(start - before - SINKS, start - before)[None]
                model(torch.tensor([list(ids[:SINKS])]), position_ids=at, past_key_values=cache, use_cache=True)
                cache = DynamicCache(
                    [
                        (torch.cat([k, old_k[:, :, -before:]], 2), torch.cat([v, old_v[:, :, -before:]], 2))
                        for (k, v, *_), (old_k, old_v) in zip(cache, kept, strict=True)
                    ]
                )
            elif kept:
                cache = DynamicCache(kept)
            held = cache.get_seq_length()
            rows, columns = torch.arange(held, held + len(piece))[:, None], torch.arange(held + len(piece))[None]
            seen = (columns <= rows) & ((rows - columns < window) | (columns < SINKS))
            mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
            out = model(
                torch.tensor([piece]), attention_mask=mask,
                position_ids=torch.arange(start, start + len(piece))[None], past_key_values=cache, use_cache=True,
            )  # fmt: skip
        kept = [(k, v) for k, v, *_ in cache]
        last = out.logits[0].log_softmax(-1)
    assert last is not None
    return float(last[-2, ids[-1]])


def test_predicted_cache_follows_the_blocks_of_each_type() -> None:
    shape = KeptShape(layers=30, kv_heads=3, head_size=64, bits=16)  # SmolLM2-135M
    assert shape.bytes_per_token(STRATEGIES["llamacpp"]) == 30 * 2 * 3 * 64 * 2
    assert shape.bytes_per_token(STRATEGIES["llamacpp_q8_0"]) == 30 * 2 * 3 * 64 * 34 / 32
    assert shape.bytes_per_token(STRATEGIES["llamacpp_q4_0"]) == 30 * 2 * 3 * 64 * 18 / 32


@pytest.mark.skipif(find_spec("optimum") is not None, reason="optimum-quanto is installed")
def test_quantised_cache_of_transformers_says_what_is_missing(tiny: Any) -> None:
    with pytest.raises(UserError, match="optimum-quanto"):
        TorchReader(tiny, "quantized").read([1, 2, 3], [1], [[4]])


def test_quantised_cache_of_transformers_is_near_the_full_one_and_as_small_as_foretold() -> None:
    pytest.importorskip("optimum.quanto")
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=400, num_hidden_layers=2, **sizes)).eval()
    ids, full, small = [at * 7 % 300 for at in range(1500)], TorchReader(model), TorchReader(model, "quantized")
    expected, read = (reader.read(ids, [10, 1400], [[1, 2], [3, 4]]) for reader in (full, small))
    assert read.scored == pytest.approx(expected.scored, abs=0.02)
    assert read.chosen == pytest.approx(expected.chosen, abs=0.02)
    shape = KeptShape(layers=2, kv_heads=1, head_size=64, bits=32)
    assert small.bytes_per_token() == pytest.approx(shape.bytes_per_token(STRATEGIES["quantized"]), rel=0.1)


def test_bench_of_a_folder_measures_to_four_times_its_length_and_shows_it(tiny_llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    asked = LongContextRequest(
        workspace=tmp_path / "ws", offline=True, model=str(tiny_llama), lengths="256,2048", depths="0,100", text=text,
        window=64, strategy=("full", "yarn", "sliding", "llamacpp"), minutes=5, precision="fp32",
    )  # fmt: skip
    result = bench_long_context(asked, Events())
    assert (result.native, result.longest) == (512, 2048) and not result.leaked
    groups = {(group.strategy, group.length): group for group in result.groups}
    assert {key for key, group in groups.items() if group.refused} == {("llamacpp", 256), ("llamacpp", 2048)}
    assert ".gguf" in (groups["llamacpp", 256].refused or "")
    full = groups["full", 2048]
    assert full.curve[0].start == 1 and full.curve[-1].stop <= 2048 and len(full.needles) == 2
    for point in full.curve:
        assert point.perplexity.low is not None and point.perplexity.low <= point.perplexity.value
    assert full.perplexity is not None and 100 < full.perplexity.value < 2000  # a random model: about its vocabulary
    versus = groups["sliding", 2048].versus_full
    assert versus is not None and groups["sliding", 2048].perplexity is not None
    apart = math.log(groups["sliding", 2048].perplexity.value / full.perplexity.value)
    assert versus.value == pytest.approx(apart, abs=1e-3)
    kept = {one.strategy: one for one in result.memory}
    assert kept["full"].measured == kept["full"].predicted and kept["llamacpp"].measured is None
    assert kept["sliding"].measured is not None and kept["sliding"].measured < kept["full"].predicted / 10
    left = {path.name for path in Path(result.folder).iterdir()}
    assert left == {"readings.jsonl", "result.json", "curve.svg", "needles.svg"}
    again = LongContext.model_validate_json((Path(result.folder) / "result.json").read_text(encoding="utf-8"))
    assert again == result
    console = Console(width=100, record=True, force_terminal=False)
    view(result, console)
    shown = console.export_text()
    assert "yarn" in shown and "not found" in shown and "not run" in shown


@pytest.fixture(scope="module")
def wide(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder and its GGUF file: heads of 32, for llama.cpp quantises keys in blocks of so many."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wide")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=2, max_position_embeddings=512, **sizes, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)
    convert(folder, folder / "wide.gguf", "wide", Events())
    return folder


def test_llamacpp_scores_weighs_and_writes_as_transformers_does(wide: Path) -> None:
    from transformers import AutoModelForCausalLM

    target = wide / "wide.gguf"
    ids, places, choices = [(13 * at + at // 7) % 300 + 10 for at in range(200)], [1, 77, 199], [[40, 41], [42, 43]]
    expected = TorchReader(AutoModelForCausalLM.from_pretrained(wide).eval()).read(ids, places, choices)
    kept = {}
    for kind, near in (("f16", 0.02), ("q8_0", 0.2)):
        settings = {"context_length": 512, "threads": 1, "cache_type_k": kind, "cache_type_v": kind}
        reader = open_reader("tiny", target, LlamaCppSettings.model_validate(settings))
        try:
            read = reader.read(ids, places, choices)
            kept[kind] = reader.bytes_per_token()
            with pytest.raises(UserError, match="did not answer"):
                reader.read([10] * 600, [], choices)
        finally:
            reader.close()
        known = [(one, two) for one, two in zip(read.scored, expected.scored, strict=True) if one is not None]
        assert len(known) >= 2 and all(one == pytest.approx(two, abs=near) for one, two in known)
        assert read.chosen == pytest.approx(expected.chosen, abs=2 * near)
        assert len(read.answer) == 2 and read.seconds > 0
    assert None not in kept.values()
    with pytest.raises(UserError, match="llamacpp_yarn"):
        open_reader("tiny", target, LlamaCppSettings(context_length=900, threads=1))


def test_bench_of_a_projects_gguf_reads_beyond_its_length_with_a_quantised_cache(wide: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    base = {"name": "p", "model": {"base": str(wide / "wide.gguf")}}
    (tmp_path / "inhouse.yaml").write_text(json.dumps(base), encoding="utf-8")
    asked = LongContextRequest(
        project=tmp_path, workspace=tmp_path / "ws", offline=True, lengths="600", depths="50", minutes=5, factor=2,
        text=tmp_path / "text.txt", strategy=("llamacpp", "llamacpp_yarn_q8_0"),
    )  # fmt: skip
    plain, stretched = bench_long_context(asked, Events()).groups
    assert plain.refused and "at most 512" in plain.refused
    assert stretched.refused is None and stretched.perplexity is not None and len(stretched.needles) == 1


def test_pictures_and_words_of_a_leak_and_of_nothing_measured() -> None:
    groups = run(ByEye(window=9999)).run()
    control = groups[0].control
    assert control is not None
    leaking = groups[0].model_copy(update={"control": control.model_copy(update={"exact": True}), "skipped": 2})
    memory = (KeptMemory(strategy="full", predicted=1024.0, measured=None),)
    result = LongContext(
        name="m", native=300, longest=600, factor=4, window=8, choices=CHOICES, device="cpu", dtype="float32",
        text="t.txt", folder="f", groups=(leaking, *groups[1:]), memory=memory,
    )  # fmt: skip
    assert result.leaked
    assert {name: picture.count("<rect") for name, picture in draw(result).items()} == {
        "curve.svg": 1,
        "needles.svg": 7,
    }
    console = Console(width=100, record=True)
    view(result, console)
    assert "prove nothing" in console.export_text()
    nothing = result.model_copy(update={"groups": (), "memory": ()})
    assert draw(nothing) == {}
    view(nothing, console)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"depths": "0,101"}, "long_context.depth"),
        ({"lengths": "0,128"}, "long_context.no_length"),
        ({"text": Path("/nowhere/text.txt")}, "long_context.text"),
    ],
)
def test_wrong_requests_are_refused_by_name(tiny_llama: Path, tmp_path: Path, changes: Any, code: str) -> None:
    asked = {"workspace": tmp_path / "ws", "offline": True, "model": str(tiny_llama), "lengths": "128"} | changes
    with pytest.raises(UserError) as error:
        bench_long_context(LongContextRequest.model_validate(asked), Events())
    assert error.value.code == code
