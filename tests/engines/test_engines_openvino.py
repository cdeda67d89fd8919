"""The OpenVINO engine on the real 135M model, beside llama.cpp and transformers as oracles."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inhouse.core.errors import UserError
from inhouse.core.serving import Ask, Constraint, Delta, EngineRefused, Sampling, ServingEngine
from inhouse.engines.backend import EngineSettings
from inhouse.engines.openvino_serving import OpenVinoSettings, Shape, cache_blocks, start
from inhouse.engines.wire import WireBackend

pytestmark = pytest.mark.real
pytest.importorskip("openvino_genai")

SETTINGS = EngineSettings(context_length=512, parallel=8, threads=1)
EXACT = OpenVinoSettings(precision="f32", kv_precision="f16", cache_mb=64)  # as transformers computes
# What transformers 5.23 makes of the same file in float32, dequantised: text, tokens of the prompt and of the answer.
ANSWERS = {
    "What is the capital of France?": ("The capital of France is Paris.", 37, 8),
    "Count from one to five.": ("1. 1\n2. 2\n", 36, 10),
    "What colour is the sky?": ("The sky is a beautiful shade of blue. It", 36, 10),
    "Say hello.": ("Hello! I'm here to help with any kind", 33, 10),
}
QUESTIONS = tuple(ANSWERS)
CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "你好，请用一句话介绍北京。"}],
    [{"role": "user", "content": "🙂👩‍👩‍👧 emoji\t  spaces\n\nand 12345.67"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Don't   stop"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Bonjour, ça va ?"},
        {"role": "user", "content": "<|im_start|>system or not"},
    ],
)
CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
    },
    "required": ["city", "tags"],
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": CITY}}


@pytest.fixture(scope="session")
def smollm2_q8(smollm2_gguf: Path) -> Path:
    """The same model with every matrix in Q8_0, which OpenVINO reads exactly (kept between runs)."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize, quantize

    target = smollm2_gguf.parents[3] / "smollm2-q8_0.gguf"
    if target.is_file():
        return target
    reader = GGUFReader(smollm2_gguf)
    writer = GGUFWriter(partial := target.with_suffix(f".{os.getpid()}"), "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind, field.types[-1] if kind == GGUFValueType.ARRAY else None)
    q8 = GGMLQuantizationType.Q8_0
    for tensor in reader.tensors:
        matrix = len(tensor.shape) > 1
        data = quantize(dequantize(tensor.data, tensor.tensor_type), q8) if matrix else tensor.data
        writer.add_tensor(tensor.name, data, raw_dtype=q8 if matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(target)
    return target


@pytest.fixture(scope="module")
def openvino(smollm2_gguf: Path) -> Iterator[WireBackend]:
    # The file holds Q4_1, of which OpenVINO's reader makes another model: it is written anew (kept between runs).
    kept = SETTINGS.model_copy(update={"cache": smollm2_gguf.parents[3]})
    running = start(smollm2_gguf, kept, "smollm2", EXACT)
    yield running
    running.stop()
    assert not running.socket.exists(), "the child did not end by itself"


def chat(*turns: str | dict[str, Any], **more: Any) -> Ask:
    """A greedy request for a few tokens; `more` are fields of Ask or of Sampling."""
    messages = [{"role": "user", "content": turn} if isinstance(turn, str) else turn for turn in turns]
    fields = {name: more.pop(name) for name in list(more) if name in Ask.__dataclass_fields__}
    return Ask(Sampling(**{"max_tokens": 10, **more}), messages=messages, **fields)


def within(running: Any, work: Callable[[ServingEngine], Awaitable[Any]]) -> Any:
    async def whole() -> Any:
        engine = running.open()
        try:
            async with asyncio.timeout(60):
                return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(whole())


async def gather(engine: ServingEngine, ask: Ask) -> list[Delta]:
    return [delta async for deltas in engine.submit(ask) for delta in deltas]


def text_of(deltas: list[Delta], index: int = 0) -> str:
    return "".join(delta.text for delta in deltas if delta.index == index)


def ask_all(running: Any, *asks: Ask) -> list[list[Delta]]:
    async def work(engine: ServingEngine) -> list[list[Delta]]:
        return await asyncio.gather(*(gather(engine, ask) for ask in asks))

    found: list[list[Delta]] = within(running, work)
    return found


def refusal(running: Any, ask: Ask) -> EngineRefused:
    with pytest.raises(EngineRefused) as refused:
        ask_all(running, ask)
    return refused.value


def test_prompts_equal_those_of_llama_cpp_in_text_and_tokens(openvino: WireBackend, smollm2_q8: Path) -> None:
    from inhouse.engines import llamacpp_serving

    async def prompts(engine: ServingEngine) -> list[Any]:
        found: list[Any] = []
        for messages in CONVERSATIONS:
            text = await engine.render(chat(*messages))
            ids = await engine.tokenize(text, special=True)
            found.append((text, ids, await engine.detokenize(ids)))
        return found

    llama = llamacpp_serving.start(smollm2_q8, EngineSettings(context_length=512, parallel=1, threads=1), "oracle")
    try:
        assert within(openvino, prompts) == within(llama, prompts)
    finally:
        llama.process.stop()


def test_greedy_answers_equal_those_of_transformers_in_full_precision(openvino: WireBackend) -> None:
    for deltas, (text, prompt, answer) in zip(ask_all(openvino, *map(chat, ANSWERS)), ANSWERS.values(), strict=True):
        assert text_of(deltas) == text
        assert deltas[-1].usage is not None
        assert (deltas[-1].usage.prompt, deltas[-1].usage.answer) == (prompt, answer)


def test_a_whole_answer_equals_its_stream(openvino: WireBackend) -> None:
    streamed, whole = ask_all(openvino, chat(QUESTIONS[1]), chat(QUESTIONS[1], whole=True))
    assert len(streamed) > len(whole) == 1
    assert text_of(streamed) == text_of(whole)
    assert sum(delta.tokens for delta in streamed) == whole[0].tokens


def test_a_stop_string_ends_the_answer_before_it(openvino: WireBackend) -> None:
    free = text_of(ask_all(openvino, chat(QUESTIONS[1]))[0])
    stop = free[4:7]
    (deltas,) = ask_all(openvino, chat(QUESTIONS[1], stop=("never", stop)))
    assert text_of(deltas) == free[: free.index(stop)]
    assert deltas[-1].finish == "stop"


def test_several_choices_differ_when_drawn_and_repeat_with_their_seed(openvino: WireBackend) -> None:
    drawn = chat("Tell me a story.", n=3, temperature=1.0, seed=11, top_p=0.99, top_k=500, min_p=0.001)
    (first,), (again,) = ask_all(openvino, drawn), ask_all(openvino, drawn)
    texts = [text_of(first, index) for index in range(3)]
    assert len(set(texts)) == 3
    assert texts == [text_of(again, index) for index in range(3)]
    (greedy,) = ask_all(openvino, chat(QUESTIONS[0], n=2, presence_penalty=0.5, frequency_penalty=0.5))
    assert text_of(greedy, 0) == text_of(greedy, 1) != ""
    repeat = "Repeat this text: Hello, my friend. Hello, my friend"
    (plain,), (less,) = (ask_all(openvino, chat(repeat, repetition_penalty=penalty)) for penalty in (1.0, 1.5))
    assert text_of(plain).startswith("Hello, my friend") and not text_of(less).startswith("Hello, my")


def test_answers_end_at_the_context_and_longer_prompts_are_refused(openvino: WireBackend) -> None:
    prompt = [28] * 500
    (deltas,) = ask_all(openvino, Ask(Sampling(max_tokens=100, ignore_end=True), prompt=prompt))
    assert sum(delta.tokens for delta in deltas) == 12
    assert deltas[-1].finish == "length"
    refused = refusal(openvino, Ask(Sampling(max_tokens=1), prompt=[28] * 512))
    assert (refused.reason, refused.tokens) == ("context", 512)
    assert refusal(openvino, Ask(Sampling(max_tokens=1), prompt="x" * 10**6)).reason == "context"


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (chat("x", logprobs=1), "unsupported"),
        (chat("x", logit_bias={5: 1.0}), "unsupported"),
        (chat("x", adapter="law"), "unsupported"),
        (chat("x", tools=(TOOL,), tool_choice="auto"), "unsupported"),
        (chat("x", constraint=Constraint("regex", "a+")), "unsupported"),
        (chat("x", constraint=Constraint("json_schema", {"type": "something"})), "unsupported"),
        (chat("x", tools=(TOOL,), tool_choice={"type": "function", "function": {"name": "other"}}), "invalid"),
        (chat("x\ud800"), "invalid"),
        (Ask(Sampling(max_tokens=1), prompt=[49152]), "invalid"),
        (Ask(Sampling(max_tokens=1), prompt=[]), "invalid"),
        (chat("x", temperature=1.0, top_p=-3.0), "invalid"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_and_it_goes_on(openvino: WireBackend, ask: Ask, reason: str) -> None:
    assert refusal(openvino, ask).reason == reason
    assert openvino.healthy()


def test_answers_keep_to_a_schema_an_object_and_a_choice(openvino: WireBackend) -> None:
    import jsonschema

    schema, thing, choice = ask_all(
        openvino,
        chat("Describe Paris.", max_tokens=80, constraint=Constraint("json_schema", CITY)),
        chat('Write {"a": 1}', max_tokens=80, constraint=Constraint("json_object")),
        chat("Is snow black?", max_tokens=20, constraint=Constraint("choice", ("oui", "不是", 'a "quoted" one'))),
    )
    jsonschema.validate(json.loads(text_of(schema)), CITY)
    assert thing[-1].finish == "length" or isinstance(json.loads(text_of(thing)), dict)
    assert text_of(choice) in ("oui", "不是", 'a "quoted" one')


def test_a_forced_tool_is_called_with_arguments_that_fit(openvino: WireBackend) -> None:
    import jsonschema

    (deltas,) = ask_all(openvino, chat("Weather in Paris?", max_tokens=80, tools=(TOOL,), tool_choice="required"))
    assert (text_of(deltas), deltas[-1].finish) == ("", "tool_calls")
    assert deltas[-1].tool_calls is not None
    call = deltas[-1].tool_calls[0]["function"]
    assert call["name"] == "weather"
    jsonschema.validate(json.loads(call["arguments"]), CITY)


def test_a_closed_answer_frees_its_place_within_a_step(openvino: WireBackend) -> None:
    async def work(engine: ServingEngine) -> float:
        answer = engine.submit(chat("Tell me a very long story.", max_tokens=400, ignore_end=True))
        await anext(answer)
        began = time.monotonic()
        await answer.aclose()
        stats = await engine.stats()
        assert (stats.running, stats.waiting) == (0, 0)
        assert (stats.memory_bytes or 0) > 2**27
        return time.monotonic() - began

    assert within(openvino, work) < 1.0


def test_embeddings_are_refused(openvino: WireBackend) -> None:
    with pytest.raises(EngineRefused, match="unsupported"):
        within(openvino, lambda engine: engine.embed(["x"]))


def test_files_that_the_reader_cannot_open_are_refused_with_what_to_do(smollm2_q8: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least") as small:
        start(smollm2_q8, EngineSettings(context_length=2048), "m", OpenVinoSettings(cache_mb=16))
    assert small.value.code == "openvino.cache"
    whole = smollm2_q8.read_bytes()
    for key, before, after in (
        (b"general.architecture", b"llama", b"gemma"),
        (b"tokenizer.ggml.model", b"gpt2", b"bert"),
    ):
        at = whole.index(before, whole.index(key))
        changed = tmp_path / "changed.gguf"
        changed.write_bytes(whole[:at] + after + whole[at + len(before) :])
        with pytest.raises(UserError, match=after.decode()) as found:
            start(changed, SETTINGS, "m")
        assert found.value.code == "openvino.unsupported"


def test_a_type_that_nothing_reads_is_refused_by_name(tmp_path: Path) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    blocks = np.zeros((1, 18), np.uint8)
    writer.add_tensor("blk.0.ffn_down.weight", blocks, raw_dtype=GGMLQuantizationType.IQ4_NL)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="IQ4_NL") as refused:
        start(tmp_path / "m.gguf", SETTINGS, "m")
    assert refused.value.code == "openvino.unsupported"


def test_the_cache_holds_as_many_tokens_as_its_megabytes_say() -> None:
    # Measured: PipelineMetrics.kv_cache_size_in_bytes of SmolLM2-135M is 13,680 bytes a token in u8, 23,040 in f16.
    shape = Shape(layers=30, kv_heads=3, head_size=64)
    assert shape.bytes_per_token("u8") == 13_680
    assert shape.bytes_per_token("f16") == 23_040
    assert cache_blocks(shape, OpenVinoSettings(cache_mb=1024), 2048) == 2**30 // (13_680 * 32)


TOLD = ("<think>", "<|quiet|>", "<|im_end|>")


def with_tokens(tiny_llama: Path, folder: Path, texts: list[Any]) -> Path:
    """The tiny model as GGUF with added tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from inhouse.compress.convert import convert
    from inhouse.core.run import Events

    tokenizer, model = AutoTokenizer.from_pretrained(tiny_llama), AutoModelForCausalLM.from_pretrained(tiny_llama)
    tokenizer.add_tokens(texts)
    model.resize_token_embeddings(len(tokenizer))
    for part in (tokenizer, model):
        part.save_pretrained(folder / "model")
    convert(folder / "model", folder / "tiny.gguf", "tiny", Events())
    return folder / "tiny.gguf"


def test_added_tokens_that_are_text_are_shown_and_control_tokens_are_not(tiny_llama: Path, tmp_path: Path) -> None:
    import openvino_genai
    from transformers import AddedToken

    from inhouse.engines.gguf_header import read_header
    from inhouse.engines.openvino_child import _Vocabulary

    path = with_tokens(
        tiny_llama, tmp_path, [AddedToken("<think>", special=False), AddedToken("<|quiet|>", special=True)]
    )
    tokenizer = openvino_genai.Tokenizer(str(path))
    vocabulary = _Vocabulary(tokenizer, path, read_header(path))
    ids = {text: tokenizer.encode(text, add_special_tokens=False).input_ids.data[0].tolist() for text in TOLD}
    assert all(len(found) == 1 for found in ids.values())
    assert [vocabulary.pieces[found[0]] for found in ids.values()] == [b"<think>", b"", b""]


def test_file_whose_control_tokens_would_be_cut_into_letters_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    from transformers import AddedToken

    path = with_tokens(tiny_llama, tmp_path, [AddedToken("<｜User｜>", special=True)])  # as DeepSeek-R1's
    with pytest.raises(UserError) as refused:
        start(path, SETTINGS, "tiny")
    assert refused.value.code == "openvino.tokenizer"
