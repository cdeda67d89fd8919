"""Fine-tune the base on the dataset: an adapter, and the base with the adapter merged in."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from inhouse.core.artifact import Kind
from inhouse.core.plugins import require
from inhouse.core.protocols import Context, Input, Made
from inhouse.core.run import release_memory
from inhouse.train.checkpoint import recipe_of
from inhouse.train.manifest import ran_on
from inhouse.train.params import TrainParams as TrainParams
from inhouse.train.setup import PACKAGES, Place, job_for, prepare, restore
from inhouse.train.track import check_trackers, keep_curves

if TYPE_CHECKING:
    from inhouse.train.loop import Job, Trained
    from inhouse.train.privacy import Spent
    from inhouse.train.result import Origin
    from inhouse.train.settle import Settled
    from inhouse.train.setup import Prepared

VERSION = "2"
KIND: Kind = "model"


def external(params: TrainParams, project_dir: Path) -> dict[str, str]:
    """Training reads artifacts only, nothing from outside."""
    return {}


def run(params: TrainParams, context: Context) -> Made:
    """Train on `dataset` from `base`; write adapter/, merged/ and README.md, and check that they agree."""
    require("train", *PACKAGES)
    from inhouse.train.distributed import take, train_in_ranks
    from inhouse.train.loop import Trained, train
    from inhouse.train.planning import refuse_base
    from inhouse.train.privacy import private_settings, publishable
    from inhouse.train.result import finish
    from inhouse.train.settle import settle

    check_trackers(params.report_to, context.offline)
    recipe = recipe_of(params, context, sys.modules[__name__])
    ranks = train_in_ranks(params, context, recipe) if params.parallel else None  # before this process loads the model
    params = private_settings(params)
    refuse_base(context.inputs["base"], params)
    ready = prepare(params, context.inputs, context.seed, context.events)
    loaded, texts = ready.loaded, ready.texts
    place = Place(context.scratch, context.events, recipe, context.offline)
    job = job_for(ready, params, context.seed, place)
    settled = settle(ready, params, context.seed, place)
    spent = None
    if ranks:
        trained = Trained(**take(loaded.model, ranks))
    elif params.privacy is not None:
        settled = replace(settled, foretold=None)  # it is of packed rows
        trained, spent = _privately(ready, settled, job)
    else:
        trained = train(loaded.model, settled.training, replace(job, sizes=settled.params))
    memory = {"ranks": trained.ranks} if ranks else settled.facts()
    _note_loss(context, trained.losses)
    release_memory()  # activations of training: the checks below hold a second copy of the model
    restore(ready)
    checked = finish(loaded.model, _origin(ready, context.inputs, spent), context)
    _add_to_cards(context.out, spent)
    keep_curves(context.scratch, context.out)
    return Made(
        facts={
            "model": checked.model.model_dump(),
            "rows": len(texts.rows),
            "too_long": texts.samples.too_long,
            "samples": texts.samples.facts,
            "objective": ready.learning.params.model_dump(),
            "changes": list(ready.changes),
            "replay": texts.replay,
            "trainable": loaded.trainable,
            "trainable_share": loaded.trainable / loaded.total,
            "steps": trained.steps,
            "epochs": trained.epochs,
            "tokens": None if spent else trained.tokens,  # how much was drawn is no part of what is promised
            "losses": trained.losses,
            "evaluations": trained.evaluations,
            "best_step": trained.best_step,
            "resumed_from": trained.resumed_from,
            "parity": publishable(checked.parity) if spent else checked.parity,
            "precision": str(loaded.compute).removeprefix("torch."),
            "ran_on": ran_on(),
            "memory": memory,
            "privacy": spent.facts() if spent else None,
        }
    )


def _privately(ready: Prepared, settled: Settled, job: Job) -> tuple[Trained, Spent]:
    """Train so that no single row shows in the weights: a loop of its own, whose losses stand in no record.

    Neither does how many rows were drawn: `epochs` are those that were to be expected.
    """
    from inhouse.train.loop import Trained
    from inhouse.train.private_loop import PrivateJob, train_private

    private = PrivateJob(
        samples=job.samples,
        pad=job.pad,
        seed=job.seed,
        folder=job.scratch / "checkpoints",
        recipe=job.recipe,
        events=job.events,
        origins=ready.texts.samples.origins,
        size=settled.params.per_device_train_batch_size,
    )
    done = train_private(ready.loaded.model, settled.training, private)
    epochs = done.spent.steps * done.spent.sample_rate
    return Trained([], done.steps, epochs, done.tokens, done.resumed_from), done.spent


def _add_to_cards(out: Path, spent: Spent | None) -> None:
    """The bound of a private run stands on its model's cards."""
    if spent is None:
        return
    for card in sorted(out.glob("**/README.md")):
        with card.open("a", encoding="utf-8") as file:
            file.write(f"\n{spent.card()}")


def _origin(ready: Prepared, inputs: Mapping[str, Input], spent: Spent | None) -> Origin:
    """What the result is checked against. Of private rows no language is told: they are counted row by row."""
    from inhouse.train.card import datasets_of, languages_of
    from inhouse.train.result import Origin

    loaded, texts, labels = ready.loaded, ready.texts, ready.learning.labels
    learned = [texts.rows[place] for place in sorted(set(texts.samples.origins))]  # what was left out cannot be asked
    known = (texts.tokenizer, texts.ends, texts.samples.kept, learned)
    sources = datasets_of(inputs[role].record for role in ("dataset", "replay") if role in inputs)
    languages = languages_of(inputs["dataset"]) if spent is None else ()
    return Origin(ready.base, ready.facts, *known, loaded.save, labels, ready.learning.unit, sources, languages)


def _note_loss(context: Context, losses: list[dict[str, float]]) -> None:
    if len(losses) > 1 and losses[-1]["loss"] >= losses[0]["loss"]:
        context.events.note("train.no_progress", first=round(losses[0]["loss"], 3), last=round(losses[-1]["loss"], 3))
