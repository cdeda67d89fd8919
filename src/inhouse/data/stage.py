"""Build the dataset artifact: tables of rows per part, what was dropped and why, and a card that says what it is."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inhouse.core.artifact import Kind
from inhouse.core.errors import UserError
from inhouse.core.fingerprint import hash_json
from inhouse.core.plugins import operator_of, operators, source_digest
from inhouse.core.protocols import Context, Made
from inhouse.core.run import Events
from inhouse.core.settings import usable_cores
from inhouse.data import beside, card, versions
from inhouse.data.build import SMALL, Built, Site, build, split_of
from inhouse.data.finish import write_tables
from inhouse.data.mix import tokenizer_of
from inhouse.data.operators.around import Around
from inhouse.data.portrait import lengths_of, portrait
from inhouse.data.privacy import refuse_personal_labels
from inhouse.data.reading import SHARD_BYTES
from inhouse.data.reasons import reason_text
from inhouse.data.settings import DataParams
from inhouse.data.shapes import AutoShape
from inhouse.data.shapes.classification import ClassificationShape
from inhouse.data.shapes.document import TextShape
from inhouse.data.source import AGREED, Located, external_of, locate, readers_of, size_of
from inhouse.data.summary import summary
from inhouse.data.tasks import Crew, Finished
from inhouse.data.weigh import mixed
from inhouse.dataset import FACTS
from inhouse.sources.licences import strictest

__all__ = ["KIND", "VERSION", "DataParams", "external", "run"]

VERSION = "3"
KIND: Kind = "dataset"
PACKED, PACKED_ENDINGS = 4, (".gz", ".zst", ".zip", ".parquet")  # how much text a packed byte is, by and large
ONLY_EVALUATION = ("evaluation", "research")


def external(params: DataParams, project_dir: Path) -> dict[str, str]:
    """What stands for the content of each source in the recipe, by source name, and of files that steps read.

    Under this module's name stands the code of the build: of the steps only what they share, for each of them enters
    the recipe where it is used, and the readers that a file's ending chooses.
    """
    found = {source.name: external_of(source, project_dir) for source in params.sources}
    found[__name__] = _code(params, project_dir)
    if params.mix is not None:
        found |= {f"mix.{name}": value for name, value in tokenizer_of(params.mix, project_dir).items()}
    for place, step in enumerate(params.steps, 1):
        operator = operator_of("cleaner", step)
        if "external" in vars(operator.module):
            read: Callable[..., dict[str, str]] = operator.function("external")
            found |= {f"steps.{place}.{name}": value for name, value in read(step, project_dir).items()}
    return found


def _code(params: DataParams, project_dir: Path) -> str:
    """A digest of the build's own code and of the readers that its sources may need."""
    names = sorted({name for source in params.sources for name in readers_of(source, project_dir)})
    readers = [source_digest(operators("reader")[name].module) for name in names]
    return hash_json([source_digest(sys.modules[__name__], apart=True), readers])[:16]


@dataclass(frozen=True)
class Result:
    """A build with its tables, before it is an artifact."""

    built: Built
    tables: list[Finished]
    facts: dict[str, Any]
    seconds: float
    workers: int


def run(params: DataParams, context: Context) -> Made:
    """Fetch the sources, build the rows, and write the artifact. Raises data.* and split.* errors."""
    result = perform(params, located_of(params, context), context)
    write(result, context.out)
    _tell(result, context.events)
    keys = ("read", "made", "rows", "labels", "rejected", "dropped", "test_texts_in_train")
    return Made(
        facts={key: result.facts[key] for key in keys},
        licences=tuple(licence for source in result.built.sources for licence in source.located.licences),
    )


def located_of(params: DataParams, context: Context) -> list[Located]:
    """The sources on this machine, their terms checked against the project's use.

    Raises data.other_use, data.no_consent, and data.never_* where no row can be in a part that is needed.
    """
    _refuse_missing_part(params)
    for source in params.sources:  # before anything is downloaded
        _refuse_other_use(source.name, source.allowed_use, context.use)
        if context.use not in AGREED.get(source.consent, (context.use,)):
            raise UserError("data.no_consent", source=source.name, consent=source.consent, use=context.use)
    located = [locate(source, context) for source in params.sources]
    for found in located:
        _refuse_other_use(found.params.name, strictest(licence.use for licence in found.licences), context.use)
    return located


def perform(params: DataParams, located: Sequence[Located], context: Context, shard_bytes: int = SHARD_BYTES) -> Result:
    """Build and write the tables below context.scratch; a build that was killed goes on where it was."""
    started = time.monotonic()
    size = sum(size_of(path) * (PACKED if path.suffix in PACKED_ENDINGS else 1) for s in located for _, path in s.files)
    workers = max(1, min(usable_cores(), size // SMALL))
    around = Around(context.seed, context.project_dir, context.sources / "replies", context.offline)
    with Crew(workers, params.engine, context.events) as crew:
        site = Site(context.scratch, crew, around, shard_bytes)
        built = build(params, located, site)
        refuse_personal_labels(built)
        refuse_unusable(built)
        mix = None if params.mix is None else mixed(built, params.mix, site)
        built = mix.built if mix else built
        tables = write_tables(built, mix.copies if mix else None, site)
    facts = {**summary(built, tables), "mix": mix and mix.report}
    return Result(built, tables, facts, time.monotonic() - started, workers)


def write(result: Result, out: Path) -> None:
    """Write the artifact's files."""
    for table in result.tables:
        link(table.folder / table.facts["name"], out / table.facts["name"])
    beside.write(result.built, out)
    facts = {**result.facts, **portrait(out, lengths_of(result.tables))}
    (out / FACTS).write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    card.write(facts, out)
    versions.write_measured(versions.measured(result.built, result.tables, result.seconds, result.workers), out)


def link(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system cannot; the first stays for a resumed build."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _tell(result: Result, events: Events) -> None:
    """Remarks to the user on what is not an error and should be known."""
    for source in result.built.sources:
        name = source.located.params.name
        if any(licence.spdx == "NOASSERTION" for licence in source.located.licences):
            events.note("data.licence_unknown", source=name)
        if source.rejected:
            events.note("data.rejected", source=name, rejected=source.rejected, read=source.read)
    if not isinstance(result.built.params.shape, ClassificationShape):
        for operator in (operator_of("cleaner", step) for step in result.built.params.steps):
            if "NOTE" in vars(operator.module):
                events.note(operator.function("NOTE"))
    if leaked := result.facts["test_texts_in_train"]:
        events.note("data.test_text_in_train", rows=leaked)


def _refuse_missing_part(params: DataParams) -> None:
    """Raise when the sources' parts and the split alone say that nothing is trained on, or nothing measured on."""
    parts = {source.part for source in params.sources}
    if None not in parts and "train" not in parts:
        raise UserError("data.never_train", parts=", ".join(sorted(part for part in parts if part)))
    test = split_of(params).test
    if "test" in parts or (None in parts and test):
        return
    if test or not isinstance(params.shape, AutoShape | TextShape):  # documents may do without when the split says so
        raise UserError("data.never_test")


def _refuse_other_use(source: str, allowed: str, use: str) -> None:
    if allowed in ONLY_EVALUATION and use != "evaluation":
        raise UserError("data.other_use", source=source, allowed=allowed, use=use)


def refuse_unusable(built: Built) -> None:
    """Raise when nothing is left, a part is missing, or there is only one label to learn."""
    import polars as pl

    counts = dict(built.index["part"].cast(pl.String).value_counts().iter_rows())
    rows = built.index.height
    if not rows:
        raise UserError("data.all_dropped", read=built.read, dropped=_why(built))
    documents = all(isinstance(source.shape, TextShape) for source in built.sources if source.shape)
    measured = not (documents and split_of(built.params).test == 0)  # what is learnt is measured
    if rows == 1 and measured:
        raise UserError("data.one_row", dropped=_why(built))
    if not counts.get("train"):
        raise UserError("data.no_train", rows=rows, dropped=_why(built))
    if measured and not counts.get("test"):
        raise UserError("data.no_test", rows=rows, dropped=_why(built))
    labels = beside.train_labels(built)
    if len(labels) == 1 and (label := labels.pop()) is not None:
        raise UserError("data.one_class", label=label, rows=counts["train"])


def _why(built: Built) -> str:
    """What each step dropped and why, the most first, for a person."""
    names = {n: f"{n + 1} {operator_of('cleaner', step).name}: " for n, step in enumerate(built.params.steps)}
    found = (
        built.dropped.group_by("step", "reason").len().sort("len", "step", "reason", descending=[True, False, False])
    )
    shown = (f"{names.get(place, '')}{reason_text(reason)} {count:,}" for place, reason, count in found.iter_rows())
    return "; ".join(shown) or "0"
