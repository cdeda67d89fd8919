"""How well a model reads long texts here, and what each way to keep what was read takes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from inhouse.api.request import Request
from inhouse.core.errors import UserError
from inhouse.core.fingerprint import hash_json
from inhouse.core.plugins import require
from inhouse.core.protocols import Input
from inhouse.core.run import Events
from inhouse.core.settings import usable_cores
from inhouse.core.store import write_durably
from inhouse.evaluate.long_context.haystack import CHOICES, Haystack, documentation
from inhouse.evaluate.long_context.kept import Readings
from inhouse.evaluate.long_context.measure import Bench, Grid
from inhouse.evaluate.long_context.picture import draw
from inhouse.evaluate.long_context.reader import Reader
from inhouse.evaluate.long_context.result import Group, KeptMemory, LongContext
from inhouse.evaluate.long_context.strategies import GGUF, STRATEGIES, TORCH, KeptShape, Strategy, StrategyName
from inhouse.flow.pipeline import pipeline
from inhouse.flow.plan import Node
from inhouse.flow.project import load
from inhouse.flow.runner import Run
from inhouse.flow.runner import run as run_nodes
from inhouse.select import stage
from inhouse.select.doctor import version_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FOLDER = "long-context"  # of the workspace
READERS = ("torch", "transformers", "xllamacpp")
NUMBERS = r"^\d+(,\d+)*$"
SHARES = (1 / 8, 1 / 2, 1, 2, 4)  # of the native length, where no lengths are asked for
ROOM = 64  # tokens of llama.cpp's context beside the prompt: the answer


class LongContextRequest(Request):
    """Which model, how long the texts are, and how they are read."""

    project: Path = Field(Path("inhouse.yaml"), description="project file, or a folder that holds inhouse.yaml")
    overrides: tuple[str, ...] = Field((), description="section.key=value, applied over the file")
    model: str | None = Field(None, description="a model in place of the project's base: catalogue name, folder, .gguf")
    lengths: str | None = Field(None, pattern=NUMBERS, description="tokens of the texts; absent: up to 4 x native")
    depths: str = Field("0,25,50,75,100", pattern=NUMBERS, description="where numbers are hidden, in percent")
    strategy: tuple[StrategyName, ...] = Field((), description="ways to read; absent: those that suit the model's file")
    factor: float = Field(4.0, gt=1, le=128, description="how far linear, dynamic and yarn stretch positions")
    window: int = Field(1024, ge=16, description="tokens that `sliding` keeps beside the first four")
    trials: int = Field(1, ge=1, le=100, description="numbers hidden at each depth")
    text: Path | None = Field(None, description="a file to read in; absent: Python's own documentation")
    minutes: float = Field(10, gt=0, le=7 * 24 * 60, description="nothing begins that would end after so many minutes")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="arithmetic of transformers; auto: bf16 if fast here"
    )
    seed: int = Field(0, ge=0, description="seed of the numbers")


def bench_long_context(request: LongContextRequest, events: Events) -> LongContext:
    """Needle test, perplexity by position and cache memory for each strategy, shortest texts first.

    Raises long_context.depth, long_context.too_short, long_context.short_text, long_context.no_length.
    """
    require("train", "torch", "transformers", "safetensors", "gguf", "accelerate")
    import torch

    from inhouse.engines.transformers import load_model, load_tokenizer

    deadline = time.monotonic() + request.minutes * 60
    source = _source(request, events)
    events.stage = "long-context"
    torch.set_num_threads(usable_cores())
    tokenizer = load_tokenizer(source)
    model = load_model(source, request.precision).eval()
    if torch.cuda.is_available():
        model = model.to("cuda")
    bench = _bench(request, (source, model, tokenizer), events, deadline)
    begun = LongContext(
        name=source.record.facts["model"]["name"], native=_native(model), longest=max(bench.grid.lengths),
        factor=request.factor, window=request.window, choices=CHOICES, device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."), text=str(request.text.name) if request.text else "python",
        folder=str(request.store.root / FOLDER / source.record.id[:12]),
    )  # fmt: skip

    def keep(groups: list[Group]) -> None:
        _write(begun.model_copy(update={"groups": tuple(groups), "memory": tuple(_memory(model, bench))}))

    bench.keep = keep
    bench.readings = Readings(Path(begun.folder) / "readings.jsonl", _asked(request, begun, bench))
    groups = bench.run()
    result = begun.model_copy(update={"groups": tuple(groups), "memory": tuple(_memory(model, bench))})
    _write(result)
    return result


def _asked(request: LongContextRequest, begun: LongContext, bench: Bench) -> str:
    """Everything that a reading depends on, besides its strategy, its length and its place."""
    own = (request.factor, request.window, request.seed, begun.device, begun.dtype, list(bench.grid.depths))
    made_by = [usable_cores(), *map(version_of, ("inhouse", *READERS))]
    return hash_json([*own, *made_by, bench.hay.begin, bench.hay.ids])


def _write(result: LongContext) -> None:
    """Result.json and the pictures, into the workspace."""
    folder = Path(result.folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / "result.json", result.model_dump_json(indent=2))
    for name, picture in draw(result).items():
        write_durably(folder / name, picture)


def _source(request: LongContextRequest, events: Events) -> Input:
    """The model's artifact, fetched where it is not there yet."""
    if request.model is not None:
        nodes: tuple[Node, ...] = (Node("base", stage, stage.ModelParams(base=request.model)),)
        folder = Path.cwd()
    else:
        project = load(request.project, request.overrides)
        nodes = tuple(node for node in pipeline(project) if node.name == "base")
        if not nodes:
            raise UserError("plan.no_step", room="model")
        folder = (request.project if request.project.is_dir() else request.project.parent).absolute()
    made = run_nodes(nodes, Run(request.store, folder, events, request.offline))
    return Input(made["base"], request.store.path(made["base"].id))


def _bench(
    request: LongContextRequest, opened: tuple[Input, PreTrainedModel, Any], events: Events, deadline: float
) -> Bench:
    source, model, tokenizer = opened
    native = _native(model)
    lengths = _lengths(request.lengths, native)
    depths = sorted({int(depth) for depth in request.depths.split(",")})
    if depths[-1] > 100:
        raise UserError("long_context.depth", depth=depths[-1])
    text = documentation() if request.text is None else _read(request.text)
    begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    hay = Haystack(text, tokenizer, begin)
    hay.check(max(lengths))
    is_gguf = source.record.facts["model"]["format"] == "gguf"
    names = request.strategy or (*TORCH, *(GGUF if is_gguf else ()))
    grid = Grid([STRATEGIES[name] for name in dict.fromkeys(names)], lengths, depths, request.trials, request.seed)
    opener = _Opener(request, source, model)
    bench = Bench(grid, hay, opener, events, deadline)
    opener.known = bench.per_token
    return bench


def _read(path: Path) -> str:
    """A file of prose; raise long_context.text where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "UTF-8"
        raise UserError("long_context.text", path=path, problem=problem) from error


def _lengths(asked: str | None, native: int) -> list[int]:
    """Tokens of the texts, in order; raise long_context.no_length for none."""
    found = {int(length) for length in asked.split(",")} if asked else {int(native * share) for share in SHARES}
    if 0 in found:
        raise UserError("long_context.no_length")
    return sorted(found)


def _native(model: PreTrainedModel) -> int:
    from inhouse.engines.rope import longest_text

    most = longest_text(model.config)
    if most is None:
        raise UserError("long_context.no_native", architecture=model.config.model_type)
    return most


class _Opener:
    """Opens one model in the way that a strategy asks for."""

    def __init__(self, request: LongContextRequest, source: Input, model: PreTrainedModel) -> None:
        self.request, self.source, self.model = request, source, model
        self.known: dict[StrategyName, tuple[float | None, int]] = {}

    def __call__(self, one: Strategy, length: int) -> Reader:
        from inhouse.engines.rope import RopeScaling, scale_rope

        scaling = None if one.rope is None else RopeScaling(rope_type=one.rope, factor=self.request.factor)
        if one.engine == "llamacpp":
            return self._llamacpp(one, length, scaling)
        from inhouse.evaluate.long_context.torch_reader import TorchReader

        model = self.model if scaling is None else scale_rope(self.model, scaling)
        return TorchReader(model, one.cache, self.request.window)

    def _llamacpp(self, one: Strategy, length: int, scaling: Any) -> Reader:
        from inhouse.engines.llamacpp import LlamaCppSettings
        from inhouse.evaluate.long_context.llama_reader import open_reader

        facts = self.source.record.facts["model"]
        if facts["format"] != "gguf":
            raise UserError("long_context.not_gguf", name=facts["name"])
        settings = LlamaCppSettings.model_validate(
            {"context_length": length + ROOM, "cache_type_k": one.cache, "cache_type_v": one.cache,
             "rope_scaling": scaling}
        )  # fmt: skip
        measured = self.known.get(one.name, (None, 0))[0]
        return open_reader(facts["name"], self.source.path / facts["main"], settings, measured)


def _memory(model: PreTrainedModel, bench: Bench) -> list[KeptMemory]:
    config = model.config.get_text_config().to_dict()
    heads = config["num_attention_heads"]
    shape = KeptShape(
        layers=config["num_hidden_layers"], kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim") or config["hidden_size"] // heads, bits=8.0 * model.dtype.itemsize,
    )  # fmt: skip
    found = []
    for one in bench.grid.strategies:
        measured, length = bench.per_token.get(one.name, (None, None))
        found.append(
            KeptMemory(strategy=one.name, predicted=shape.bytes_per_token(one), measured=measured, length=length)
        )
    return found
