"""This product's training on the same rows: the model and samples that its stage prepares, and its own loop.

as-it-comes: its defaults (bf16 where the machine has it, adapters in fp32). half: the same, and the merged weights
saved in bf16, so that no fp32 copy of the base is held. fp32: arithmetic in fp32, for the comparison of losses with a
plain step; -unshared and -unpacked: the same without reading shared beginnings once, and without packing. dpo: pairs
instead of answers. Only the order of the rows is taken out of its hands: batches are those of the file.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from flops import Counter, Peak
from side import ALPHA, LONGEST, RANK, RATE, SEED, Clock, Settings, read, settings, token_rows, useful

SETTINGS: dict[str, dict] = {
    "as-it-comes": {},
    "half": {"save_dtype": "bf16"},
    "unshared": {"share_prefix": False},
    "unpacked": {"packing": False},
    "fp32": {"precision": "fp32"},
    "fp32-unshared": {"precision": "fp32", "share_prefix": False},
    "fp32-unpacked": {"precision": "fp32", "packing": False},
    "dpo": {"objective": "dpo", "learning_rate": RATE / 10},
}


def main() -> None:
    asked = settings(tuple(SETTINGS))
    os.environ["INHOUSE_THREADS"] = str(asked.threads)
    units = [asked.size] * asked.steps if asked.variant == "dpo" else useful(token_rows(asked), asked)
    clock = Clock(asked, units)
    with tempfile.TemporaryDirectory() as folder:
        facts = train(asked, clock, Path(folder))
    clock.write("ours", **facts)


def train(asked: Settings, clock: Clock, folder: Path) -> dict:
    """Prepare and run the loop as the stage does, the clock listening to its events."""
    from inhouse.core.run import collect_seldom

    collect_seldom()  # as each command does when it starts
    import inhouse.train.loop as loop
    from inhouse.train.params import TrainParams
    from inhouse.train.segments import pack
    from inhouse.train.setup import Place, job_for, prepare

    if asked.variant == "dpo":
        count_the_reference(clock)
    params = TrainParams.model_validate(common(asked) | SETTINGS[asked.variant])
    events = heard(clock)
    ready = prepare(params, inputs(asked, folder), SEED, events)
    loop.plan_batches = in_file_order
    job = job_for(ready, params, SEED, Place(folder, events, {}, True))
    facts = {}
    if asked.variant != "dpo":
        same_tokens(job.samples, asked)
    model = ready.loaded.model
    counted = params.packing and asked.variant != "dpo"
    peak = Peak(clock) if counted else None
    loop.train(model, params, job)
    if peak is not None:
        counter = Counter(model)
        rows = [pack([job.samples[i] for i in batch], params.share_prefix) for batch in loop.plan_steps(params, job)]
        facts = peak.share([counter.packed(row) for row in rows])
    types = {
        wanted: {str(p.dtype) for p in model.parameters() if p.requires_grad is wanted} for wanted in (True, False)
    }
    return {**facts, "adapters": sorted(types[True]), "weights": sorted(types[False])}


def count_the_reference(clock: Clock) -> None:
    """TRL reads the reference in every step; the product once, before the first: a part of what each pair costs."""
    from inhouse.train.objectives import dpo

    read_reference = dpo.reference_of

    def timed(start):
        before = time.process_time(), time.perf_counter()
        found = read_reference(start)
        pairs = len(start.samples) // dpo.UNIT
        after = time.process_time(), time.perf_counter()
        clock.each = tuple((end - begin) / pairs for begin, end in zip(before, after, strict=True))
        return found

    dpo.reference_of = timed


def common(asked: Settings) -> dict:
    """The settings that all sides share, in this product's words."""
    return {
        "method": {"use": "lora", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0},
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0,
        "max_steps": asked.steps,
        "per_device_train_batch_size": asked.size,
        "max_length": LONGEST,
        "save_steps": 10 * asked.steps,
        "logging_steps": 1,
    }


def in_file_order(examples: list, size: int, epochs: float, seed: int) -> list[list[int]]:
    """Batches of the examples as they stand, in place of the product's own order."""
    once = [list(range(len(examples)))[at : at + size] for at in range(0, len(examples), size)]
    return once * int(epochs + 1)


def heard(clock: Clock):
    """Events that tell the clock what the loop reports of itself."""
    from inhouse.core.run import Events

    class Heard(Events):
        def progress(self, done, total=None, unit="", **facts):
            if unit == "steps" and done:
                clock.step(int(done))
            super().progress(done, total, unit, **facts)

        def emit(self, event, **facts):
            if event == "train.step":
                clock.losses[facts["step"]] = facts["loss"]
            super().emit(event, **facts)

    return Heard()


def inputs(asked: Settings, folder: Path) -> dict:
    """The model folder and the rows as the artifacts that a stage reads."""
    from inhouse.core.artifact import Artifact
    from inhouse.core.protocols import Input
    from inhouse.dataset import write_rows
    from inhouse.select.inspect import inspect_folder

    model = Path(asked.model("fp32"))
    (folder / "data").mkdir()
    write_rows(folder / "data", "train", rows(asked))

    def record(kind: str, facts: dict) -> Artifact:
        values = {"id": kind, "kind": kind, "stage": "bench", "node": "bench", "stage_version": "1", "recipe": "bench"}
        return Artifact.model_validate({**values, "params": {}, "created": "", "facts": facts})

    header = {"model": {**inspect_folder(model).model_dump(), "main": "."}}
    return {
        "base": Input(record("model", header), model),
        "dataset": Input(record("dataset", {}), folder / "data"),
    }


def rows(asked: Settings) -> list:
    """The conversations; for dpo with the worse answer."""
    from inhouse.core.rows import Row

    plain = read(asked.folder / "rows.jsonl")
    if asked.variant == "dpo":
        pairs = read(asked.folder / "pairs.jsonl")
        plain = [{**row, "rejected": pair["rejected"]} for row, pair in zip(plain, pairs, strict=True)]
        plain = plain[: asked.steps * asked.size]
    return [Row.model_validate(row) for row in plain]


def same_tokens(kept, asked: Settings) -> None:
    """Stop when these are not the tokens that the peers get."""
    given = read(asked.folder / "tokens.jsonl")
    assert len(kept) == len(given)
    for sample, row in zip(kept, given, strict=True):
        assert list(sample.ids) == row["input_ids"]
        assert list(sample.learned) == [label >= 0 for label in row["labels"]]


if __name__ == "__main__":
    main()
