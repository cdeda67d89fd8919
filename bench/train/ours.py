"""This product's training on the same rows: the model and samples that its stage prepares, and its own loop.

as-it-comes: its defaults (bf16 where the machine has it, adapters in fp32). fp32: arithmetic in fp32, for the
comparison of losses with a plain step. half: as-it-comes, and the merged weights saved in bf16, so that no fp32 copy
of the base is held. dpo: preferences instead of answers. Only the order of the rows is taken out of its hands:
batches are those of the file.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from side import ALPHA, LONGEST, RANK, RATE, SEED, Clock, Settings, read, settings, token_rows, useful

VARIANTS = ("as-it-comes", "half", "fp32")
SETTINGS: dict[str, dict] = {"as-it-comes": {}, "half": {"save_dtype": "bf16"}, "fp32": {"precision": "fp32"}}


def main() -> None:
    asked = settings(VARIANTS)
    os.environ["INHOUSE_THREADS"] = str(asked.threads)
    clock = Clock(asked, useful(token_rows(asked), asked))
    with tempfile.TemporaryDirectory() as folder:
        facts = train(asked, SETTINGS[asked.variant], clock, Path(folder))
    clock.write("ours", **facts)


def train(asked: Settings, words: dict, clock: Clock, folder: Path) -> dict:
    """Prepare and run the loop as the stage does, the clock listening to its events."""
    from flops import Counter, share_of_peak

    import inhouse.train.loop as loop
    from inhouse.core.run import Events
    from inhouse.train.params import TrainParams
    from inhouse.train.segments import pack
    from inhouse.train.setup import prepare

    class Heard(Events):
        """Tells the clock what the loop reports of itself."""

        def progress(self, done, total=None, unit="", **facts):
            if unit == "steps" and done:
                clock.step(int(done))
            super().progress(done, total, unit, **facts)

        def emit(self, event, **facts):
            if event == "train.step":
                clock.losses[facts["step"]] = facts["loss"]
            super().emit(event, **facts)

    params = TrainParams.model_validate(
        {
            "method": {
                "use": "lora",
                "r": RANK,
                "lora_alpha": ALPHA,
                "lora_dropout": 0,
                "target_modules": "all-linear",
            },
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            "warmup_ratio": 0,
            "max_steps": asked.steps,
            "per_device_train_batch_size": asked.size,
            "max_length": LONGEST,
            "save_steps": 10 * asked.steps,
            "logging_steps": 1,
            **words,
        }
    )
    ready = prepare(params, inputs(asked, folder), SEED, Heard())
    kept, size = ready.texts.samples.kept, asked.size
    same_tokens(kept, asked)
    order = list(range(len(kept))) * (asked.steps * size // len(kept) + 1)
    loop.plan_steps = lambda *_: [order[at : at + size] for at in range(0, asked.steps * size, size)]
    job = loop.Job(kept, ready.texts.pad, SEED, folder, Heard())
    loop.train(ready.loaded.model, params, job)
    parameters = list(ready.loaded.model.parameters())
    counter = Counter(ready.loaded.model)
    rows = [pack([kept[i] for i in batch]) for batch in loop.plan_steps()]
    return {
        **share_of_peak(clock, [counter.packed(row) for row in rows]),
        "adapters": sorted({str(p.dtype) for p in parameters if p.requires_grad}),
        "weights": sorted({str(p.dtype) for p in parameters if not p.requires_grad}),
    }


def inputs(asked: Settings, folder: Path) -> dict:
    """The model folder and the rows as the artifacts that a stage reads."""
    from inhouse.core.artifact import Artifact
    from inhouse.core.protocols import Input
    from inhouse.core.rows import Row
    from inhouse.dataset import write_rows
    from inhouse.select.inspect import inspect_folder

    model = Path(asked.model("fp32"))
    (folder / "data").mkdir()
    write_rows(folder / "data", "train", [Row.model_validate(row) for row in read(asked.folder / "rows.jsonl")])

    def record(kind: str, facts: dict) -> Artifact:
        values = {"id": kind, "kind": kind, "stage": "bench", "node": "bench", "stage_version": "1", "recipe": "bench"}
        return Artifact.model_validate({**values, "params": {}, "created": "", "facts": facts})

    header = {"model": {**inspect_folder(model).model_dump(), "main": "."}}
    return {
        "base": Input(record("model", header), model),
        "dataset": Input(record("dataset", {}), folder / "data"),
    }


def same_tokens(kept: list, asked: Settings) -> None:
    """Stop when these are not the tokens that the peers get."""
    rows = read(asked.folder / "tokens.jsonl")
    assert len(kept) == len(rows)
    for sample, row in zip(kept, rows, strict=True):
        assert list(sample.ids) == row["input_ids"]
        assert list(sample.learned) == [label >= 0 for label in row["labels"]]


if __name__ == "__main__":
    main()
