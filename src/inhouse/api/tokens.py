"""What a model reads of a dataset's rows: every token, and whether it is learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inhouse.api.request import Request
from inhouse.core.artifact import Artifact, Frozen
from inhouse.core.errors import UserError
from inhouse.core.protocols import Input
from inhouse.core.rows import PARTS, Part, Row
from inhouse.core.run import Events
from inhouse.dataset import read_rows
from inhouse.flow.plan import Node, pipeline, recipe
from inhouse.flow.project import load
from inhouse.train.params import TrainParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from inhouse.train.learning import Coding, Learning
    from inhouse.train.spans import Coder, Sample
    from inhouse.train.tokens import Limit

Label = Literal["learned", "context", "cut"]
Name = Literal["sample", "chosen", "rejected", "dropped"]
NO_LIMIT = 1 << 40


class TokensRequest(Request):
    """Which rows of the dataset that a project is trained on."""

    project: Path = Field(Path("inhouse.yaml"), description="project file, or a folder that holds inhouse.yaml")
    overrides: tuple[str, ...] = Field((), description="section.key=value, applied over the file")
    row: str | None = Field(None, description="id of a row or its beginning, source:offset, or source/file:offset")
    part: Part = Field("train", description="train, valid or test")
    n: int = Field(3, ge=0, description="rows shown: the first ones of the part")
    section: int = Field(1, ge=1, description="which training of a chain, from 1")
    ids: bool = Field(False, description="show a line for every token, with its id")


class Token(Frozen):
    """One token. `text` is empty where a character goes on in the next token."""

    id: int
    text: str
    label: Label = Field(description="learned; context: read only; cut: written by the template, not in the sample")


class TokenSample(Frozen):
    """One sample of a row, as training reads it."""

    name: Name
    tokens: tuple[Token, ...]
    answer: str | None = Field(None, description="the label that a classifier learns of it; no token is learned then")


class TokenRow(Frozen):
    """A row as tokens: one sample, several where it was split, or a better and a worse answer."""

    id: str
    source: str
    file: str
    offset: int
    samples: tuple[TokenSample, ...]


class Tokens(Frozen):
    """Rows as tokens, and counts of the whole part."""

    dataset: str
    model: str
    part: Part
    max_length: int
    turns: Literal["last", "all"]
    over_length: str
    counts: dict[str, int] = Field(description="rows, samples, tokens, learned and what became of long rows")
    rows: tuple[TokenRow, ...]
    ids: bool


def show_tokens(request: TokensRequest) -> Tokens:
    """Every token of some rows and its label, and the counts of their part.

    Raises tokens.not_built, tokens.no_training, tokens.no_rows, tokens.row_unknown and what encoding rows raises.
    """
    from inhouse.engines.torch_chat import stored_end_tokens
    from inhouse.engines.transformers import facts_of, load_tokenizer
    from inhouse.train.setup import longest
    from inhouse.train.spans import Coder
    from inhouse.train.tokens import Limit, gather

    params, base, dataset = _inputs(request)
    part, rows = _chosen(request, dataset.path)
    tokenizer = load_tokenizer(base)
    folder = base.path / facts_of(base).main
    if params.objective.model_dump()["use"] == "classify":
        return _questions(request, (params, base, dataset), tokenizer, (part, rows))
    ends = stored_end_tokens(folder if folder.is_dir() else folder.parent, tokenizer)
    coder = Coder(tokenizer, ends)
    limit = Limit(longest(_outline(base, params).config, params, Events()), params.turns, params.over_length)
    counts = gather(read_rows(dataset.path, part), coder, limit, Events()).facts
    return Tokens(
        dataset=dataset.record.id, model=facts_of(base).name, part=part, max_length=limit.longest, turns=limit.turns,
        over_length=limit.over_length, counts=counts, ids=request.ids,
        rows=tuple(_row(row, tokenizer, coder, limit) for row in rows),
    )  # fmt: skip


def _questions(
    request: TokensRequest,
    given: tuple[TrainParams, Input, Input],
    tokenizer: PreTrainedTokenizerBase,
    chosen: tuple[Part, list[Row]],
) -> Tokens:
    """What a classifier reads: the question of each row, whose label is learned as a whole."""
    from inhouse.engines.transformers import facts_of
    from inhouse.train.learning import Learning
    from inhouse.train.objectives.classify import label_of
    from inhouse.train.setup import coding_of

    params, base, dataset = given
    part, rows = chosen
    model = facts_of(base).name
    learning = Learning(params.objective).completed([*read_rows(dataset.path, "train")])
    params = params.model_copy(update={"objective": learning.params})
    coding = coding_of(_outline(base, params), tokenizer, params, (model, Events(), {}))

    def read(row: Row) -> TokenRow:
        samples = tuple(
            TokenSample(name=name, tokens=tuple(_tokens(tokenizer, sample, (), name)), answer=label_of(row))
            for name, sample in _read_by(learning, coding, row)
        )
        return TokenRow(id=row.id, source=row.source, file=row.file, offset=row.offset, samples=samples)

    counts = learning.encode([*read_rows(dataset.path, part)], coding).facts
    return Tokens(
        dataset=dataset.record.id, model=model, part=part, max_length=coding.limit.longest, turns=coding.limit.turns,
        over_length=coding.limit.over_length, counts=counts, ids=request.ids, rows=tuple(map(read, rows)),
    )  # fmt: skip


def _read_by(learning: Learning, coding: Coding, row: Row) -> Iterator[tuple[Name, Sample]]:
    """A question as it is read; whole where it is too long. Nothing where its text cannot be made plain."""
    tries: tuple[tuple[Name, int], ...] = (("sample", coding.limit.longest), ("dropped", NO_LIMIT))
    for name, longest in tries:
        try:
            yield name, learning.encode([row], replace(coding, limit=coding.limit._replace(longest=longest))).kept[0]
            return
        except UserError as error:
            if error.code == "train.all_refused":
                return
            if error.code != "train.all_dropped":
                raise


def _outline(base: Input, params: TrainParams) -> PreTrainedModel:
    """The base as it is trained, without its weights: what it is says how it reads, and how long texts may be."""
    import torch
    from transformers import AutoConfig, AutoModel

    from inhouse.engines.transformers import facts_of
    from inhouse.train.setup import shaped

    path = base.path / facts_of(base).main
    where, file = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
    config = AutoConfig.from_pretrained(where, local_files_only=True, **file)
    with torch.device("meta"):
        return shaped(AutoModel.from_config(config), params)


def _inputs(request: TokensRequest) -> tuple[TrainParams, Input, Input]:
    """The settings of the training, the model it starts from and the dataset it learns from."""
    project = load(request.project, request.overrides)
    steps = pipeline(project)
    trainings = [node for node in steps if isinstance(node.params, TrainParams)]
    if request.section > len(trainings):
        raise UserError("tokens.no_training", project=request.project, count=len(trainings))
    node = trainings[request.section - 1]
    assert isinstance(node.params, TrainParams)
    by_name = {step.name: step for step in steps}
    # Along a chain the tokenizer stays that of the first base.
    found = [_made(by_name[name], request) for name in ("base", node.inputs["dataset"])]
    base, dataset = (Input(record, request.store.path(record.id)) for record in found)
    return node.params, base, dataset


def _made(node: Node, request: TokensRequest) -> Artifact:
    folder = (request.project if request.project.is_dir() else request.project.parent).absolute()
    key, _, _ = recipe(node, {}, folder)
    if (found := request.store.find(key)) is None:
        where = request.store.root
        raise UserError("tokens.not_built", step=node.name, project=request.project, workspace=where, room=node.room)
    return found


def _chosen(request: TokensRequest, folder: Path) -> tuple[Part, list[Row]]:
    """The part and the rows asked for; a row that is named may stand in any part."""
    if request.row is None:
        rows = [row for _, row in zip(range(max(request.n, 1)), read_rows(folder, request.part), strict=False)]
        if not rows:
            raise UserError("tokens.no_rows", part=request.part)
        return request.part, rows[: request.n]
    for part in PARTS:
        for row in read_rows(folder, part):
            if row.id.startswith(request.row.lower()) or request.row in _places(row):
                return part, [row]
    raise UserError("tokens.row_unknown", row=request.row, parts=", ".join(PARTS))


def _places(row: Row) -> tuple[str, str]:
    return f"{row.source}:{row.offset}", f"{row.source}/{row.file}:{row.offset}"


def _row(row: Row, tokenizer: PreTrainedTokenizerBase, coder: Coder, limit: Limit) -> TokenRow:
    found = tuple(
        TokenSample(name=name, tokens=tuple(_tokens(tokenizer, sample, cut, name)))
        for name, sample, cut in _samples(row, coder, limit)
    )
    return TokenRow(id=row.id, source=row.source, file=row.file, offset=row.offset, samples=found)


def _samples(row: Row, coder: Coder, limit: Limit) -> Iterator[tuple[Name, Sample, Sequence[int]]]:
    """Samples of a row and the ids that were cut off behind each."""
    from inhouse.engines.torch_chat import render
    from inhouse.train.tokens import encode_pairs, gather, is_document

    if row.rejected is not None:
        whatever = limit._replace(longest=NO_LIMIT, over_length="drop")
        try:
            pair = encode_pairs([row], coder.tokenizer, coder.ends, whatever, Events()).kept[0]
        except UserError as error:
            if error.code != "train.all_refused":
                raise
            return
        yield "chosen", pair.chosen, ()
        yield "rejected", pair.rejected, ()
        return
    kept = gather([row], coder, limit, Events()).kept
    if is_document(row):
        yield from (("sample", sample, ()) for sample in kept)
        return
    whole = gather([row], coder, limit._replace(longest=NO_LIMIT), Events()).kept
    if not whole:
        return  # its text cannot be made plain: it is left out, and counted
    written = render(coder.tokenizer, row.messages, False, row.tools)
    for place, sample in enumerate(kept or whole):
        full = whole[place].ids if len(whole) == len(kept) else sample.ids
        full = tuple(written) if tuple(written[: len(full)]) == full else full
        behind = full[len(sample.ids) :] if full[: len(sample.ids)] == sample.ids else ()
        yield ("sample" if kept else "dropped"), sample, behind


def _tokens(tokenizer: PreTrainedTokenizerBase, sample: Sample, cut: Sequence[int], name: Name) -> Iterator[Token]:
    """The tokens with their texts: a character of several tokens stands at the last of them."""
    ids = [*sample.ids, *cut]
    anchor = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]  # some drop a space at the beginning
    before = len(tokenizer.decode(anchor))
    start = 0
    for place, number in enumerate(ids):
        told = tokenizer.decode([*anchor, *ids[start : place + 1]], clean_up_tokenization_spaces=False)[before:]
        whole = not told.endswith("\ufffd") or place == len(ids) - 1
        label: Label = "context"
        if name == "dropped" or place >= len(sample.ids):
            label = "cut"
        elif sample.learned[place]:
            label = "learned"
        yield Token(id=number, text=told if whole else "", label=label)
        start = place + 1 if whole else start
