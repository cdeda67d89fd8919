"""How often a sample of a text gets the language code that its full text gets.

python bench/data/agreement.py [--mb 200] [--chars 1000] [--work .inhouse/bench]
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np
import polars as pl
from run import WORK

from inhouse.data.kernels.buffers import flat
from inhouse.data.kernels.fasttext import predict
from inhouse.data.kernels.sample import sample
from inhouse.data.operators.language import STRETCHES, _model

AT_ONCE = 4000
CONFIDENCES = (0.0, 0.3, 0.65)  # of the full text's code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=200, choices=(18, 200))
    parser.add_argument("--chars", type=int, default=1000)
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args()
    model, names = _model()
    counts = (1, 3, 5, STRETCHES, 20)
    full, confidence, sampled = [], [], {count: [] for count in counts}  # type: ignore[var-annotated]
    with (options.work / "corpus" / f"{options.mb}.jsonl").open(encoding="utf-8") as f:
        while texts := [json.loads(line)["text"] for line in islice(f, AT_ONCE)]:
            data, offsets = flat(pl.Series(texts))
            codes, sure = predict(model, data, offsets)
            full.append(codes)
            confidence.append(sure)
            for count in counts:
                found, _ = predict(model, *sample(data, offsets, count, options.chars // count))
                sampled[count].append(found)
    codes, sure = np.concatenate(full), np.concatenate(confidence)
    print(
        f"{len(codes):,} documents; "
        + ", ".join(f"{(sure >= c).sum():,} of confidence {c} and more" for c in CONFIDENCES)
    )
    print("| stretches | all | " + " | ".join(f">= {c}" for c in CONFIDENCES[1:]) + " | zh | en |\n" + "|---" * 6 + "|")
    for count in counts:
        same = np.concatenate(sampled[count]) == codes
        chosen = [sure >= c for c in CONFIDENCES] + [codes == names.index(code) for code in ("zh", "en")]
        print(f"| {count} | " + " | ".join(f"{same[some].mean():.1%}" for some in chosen) + " |")


if __name__ == "__main__":
    main()
