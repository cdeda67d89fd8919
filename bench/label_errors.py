"""Precision of the label-error ranking on the demo's Reuters items with planted noise: python bench/label_errors.py"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

from inhouse.api.label import label_params
from inhouse.core.protocols import Context
from inhouse.core.run import Events
from inhouse.data.label.errors import FindErrors, find_errors
from inhouse.data.label.items import Item, items_of
from inhouse.data.source import locate
from inhouse.flow.project import load

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "desk-routing"
ROWS, SHARE, SEED = 4000, 0.1, 0


def news() -> list[Item]:
    """Distinct news items of the demo's sources."""
    params = label_params(load(EXAMPLE))
    with tempfile.TemporaryDirectory() as nowhere:
        context = Context(
            {}, Path(nowhere), Path(nowhere), ROOT / ".inhouse" / "sources", EXAMPLE, Events(), 0, offline=False
        )
        found = items_of([locate(source, context) for source in params.sources], params, Events())
    return list({item.id: item for item in found.rows}.values())


def main() -> None:
    draw = random.Random(SEED)
    rows = draw.sample(news(), ROWS)
    labels = sorted({str(item.label) for item in rows})
    wrong = set(draw.sample([item.id for item in rows], round(SHARE * ROWS)))
    noisy = []
    for item in rows:
        others = [label for label in labels if label != item.label]
        noisy.append(Item(item.id, item.text, draw.choice(others) if item.id in wrong else item.label, {}))
    began = time.process_time()
    found = find_errors(noisy, FindErrors(), Events())
    seconds = time.process_time() - began
    for count in (len(wrong) // 2, len(wrong)):
        hits = sum(suspect.id in wrong for suspect in found.suspects[:count])
        print(f"precision@{count} {hits / count:.3f}")
    print(f"{ROWS} rows, {len(labels)} labels, {len(wrong)} wrong; {seconds:.1f} s CPU; judge {found.judge.share:.3f}")


if __name__ == "__main__":
    main()
