"""Measure the operators of the recipe one by one, without the engine around them: where do the CPU-seconds go?

    python bench/data/chain.py [--mb 18] [--sample 1000 | null] [--work .inhouse/bench]

One process, one polars thread, batches of 512 documents in memory, reading and writing left out. Every step runs once
on the first 60 documents before it counts. This is the least that the whole build can take.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["POLARS_MAX_THREADS"] = "1"

import polars as pl
import yaml
from run import FEW, HERE, WORK, machine

from inhouse.core.plugins import Operator, operators
from inhouse.data.operators.around import Around

BATCH = 512


class Chain:
    """Runs steps over batches and keeps what each took; rows dropped by a step are not seen by the next."""

    def __init__(self, around: Around) -> None:
        self.around = around
        self.seconds: Counter[str] = Counter()
        self.mb: Counter[str] = Counter()
        self.left: dict[str, int] = {}

    def step(self, operator: Operator, settings: dict[str, object], docs: list[pl.DataFrame]) -> list[pl.DataFrame]:
        """The documents that a step leaves."""
        params, module = operator.params.model_validate(settings), operator.module
        self.mb[operator.name] = sum(int(batch["text"].str.len_bytes().sum()) for batch in docs) / 1e6
        began = time.process_time()
        if module.SHAPE == "map":
            docs = [self.mapped(module, params, batch) for batch in docs]
        elif module.SHAPE == "keep":
            docs = [self.judged(module, params, batch) for batch in docs]
        else:
            docs = self.reduced(module, params, docs)
        self.seconds[operator.name] += time.process_time() - began
        self.left[operator.name] = sum(batch.height for batch in docs)
        return docs

    def mapped(self, module, params, batch: pl.DataFrame) -> pl.DataFrame:
        """A batch with its new texts, without those that became null."""
        slot, name = pl.lit(0, pl.UInt32).alias("slot"), pl.lit("text").alias("name")
        pieces = batch.select("row", slot, name, "text", pl.lit(False).alias("answer"))
        new = module.change(pieces, params, self.around)
        text = new[0] if isinstance(new, tuple) else new
        return batch.with_columns(text.alias("text")).filter(pl.col("text").is_not_null())

    def judged(self, module, params, batch: pl.DataFrame) -> pl.DataFrame:
        """The documents of a batch that a step keeps."""
        return batch.filter(module.drop_reason(module.measure(batch, params, self.around), params).is_null())

    def reduced(self, module, params, docs: list[pl.DataFrame]) -> list[pl.DataFrame]:
        """The documents left when all have been compared."""
        emitted = pl.concat([module.emit(batch, params, self.around) for batch in docs]).sort("row")
        more = []
        if "ask" in vars(module):
            asked = module.ask(emitted, params, self.around)
            again = [batch.filter(pl.col("row").is_in(asked.implode())) for batch in docs]
            more = [pl.concat([module.emit_more(batch, params, self.around) for batch in again]).sort("row")]
        verdict = module.decide(emitted, params, self.around, *more)
        gone = verdict.filter(pl.col("reason").is_not_null())["row"]
        return [batch.filter(~pl.col("row").is_in(gone.implode())) for batch in docs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=18, choices=(18, 200))
    parser.add_argument("--sample", default="1000", help="characters that language identification sees; null: all")
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args()
    recipe = yaml.safe_load((HERE / "ours.yaml").read_text(encoding="utf-8").replace("SAMPLE", options.sample))
    cleaners, steps = operators("cleaner"), recipe["data"]["steps"]
    docs = read(options.work / "corpus" / f"{options.mb}.jsonl")
    with tempfile.TemporaryDirectory() as cache:
        around = Around(seed=7, project_dir=HERE, cache=Path(cache), offline=True)
        warm, chain = Chain(around), Chain(around)
        few = [docs[0].head(FEW)]
        for step in steps:
            few = warm.step(cleaners[step["use"]], step, few)
        for step in steps:
            docs = chain.step(cleaners[step["use"]], step, docs)
    total, mb = sum(chain.seconds.values()), chain.mb[steps[0]["use"]]
    print(f"{machine()}, load {os.getloadavg()[0]:.1f}, {options.mb}.jsonl, language from {options.sample} characters")
    print("| step | CPU-s | MB per CPU-s | documents left |\n|---|---|---|---|")
    for step in steps:
        name = step["use"]
        speed = chain.mb[name] / chain.seconds[name]
        print(f"| {name} | {chain.seconds[name]:.2f} | {speed:.0f} | {chain.left[name]} |")
    print(f"| all | {total:.2f} | {mb / total:.2f} | |")


def read(file: Path) -> list[pl.DataFrame]:
    """The corpus as batches of the frame that operators see."""
    with file.open("rb") as f:
        texts = [json.loads(line)["text"] for line in f]
    frame = pl.DataFrame(
        {"row": pl.int_range(len(texts), dtype=pl.UInt64, eager=True), "text": texts},
    ).with_columns(
        pl.lit("corpus").alias("source"),
        pl.col("row").cast(pl.Int64).alias("offset"),
        pl.lit("train").alias("part"),
        pl.lit(None, pl.String).alias("label"),
    )
    return [frame.slice(start, BATCH) for start in range(0, frame.height, BATCH)]


if __name__ == "__main__":
    main()
