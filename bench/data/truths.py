"""How much inhouse and the peers find of what the tests plant: near-duplicates and personal data with known answers.

    python bench/data/truths.py [near] [pii] [--count 500] [--work .inhouse/bench]

The sets come from tests/data/truth_pairs.py and tests/data/truth_pii.py, the same that the tests of the data build
must pass. Every peer runs the one step alone, over all of the set at once, with each of its settings that a user could
choose for it. A pair counts as found when one of its two documents is gone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml
from ours import built
from run import ENV, HERE, ROOT, WORK, no_network

sys.path.insert(0, str(ROOT / "tests" / "data"))
import truth_pairs
import truth_pii

LEVELS = {"0.8 to 1": (0.8, 1.0), "0.7 to 0.8": (0.7, 0.8)}
MINHASH = {"window_size": 5, "lowercase": True, "num_permutations": 112, "num_bands": 14, "num_rows_per_band": 8}


@dataclass(frozen=True)
class Tool:
    """A peer with the setting of one step."""

    name: str
    peer: str
    settings: tuple[str, ...]


NEAR = (
    Tool("inhouse", "inhouse", ("near_dedup", "")),
    Tool("data-juicer, words (default)", "juicer", ("document_minhash_deduplicator", "space")),
    Tool("data-juicer, characters", "juicer", ("document_minhash_deduplicator", "character")),
    Tool("datatrove, English (default)", "datatrove", ("english", "minhash")),
    Tool("datatrove, white space", "datatrove", ("whitespace", "minhash")),
)

PII = (
    Tool("inhouse, pii", "inhouse", ("pii", "")),
    Tool("data-juicer, pii_redaction_mapper", "juicer", ("pii_redaction_mapper", "")),
    Tool("datatrove, PIIFormatter", "datatrove", ("whitespace", "pii")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="near, pii; absent: both")
    parser.add_argument("--count", type=int, default=500, help="pairs per language and level")
    parser.add_argument("--work", type=Path, default=WORK)
    options = parser.parse_args()
    what = options.what or ["near", "pii"]
    if "near" in what:
        print(near(options.count, options.work))
    if "pii" in what:
        print(pii(options.work))


def near(count: int, work: Path) -> str:
    """Recall per language and true similarity, and false alarms on pairs of one template, in Markdown."""
    sets = {
        f"{language} {level}": truth_pairs.pairs(language, low, high, count, seed)
        for language in truth_pairs.LANGUAGES
        for seed, (level, (low, high)) in enumerate(LEVELS.items(), 10)  # one seed: one set of first documents
    }
    for language in truth_pairs.LANGUAGES:
        sets[f"{language} one template"] = truth_pairs.same_template(language, count)
    texts = {
        f"{name}/{number}/{side}": text
        for name, found in sets.items()
        for number, pair in enumerate(found)
        for side, text in (("one", pair.one), ("other", pair.other))
    }
    lines = ["| | " + " | ".join(sets) + " |", "|---" * (len(sets) + 1) + "|"]
    for tool in NEAR:
        stay = set(kept(tool, texts, work))
        cells = []
        for name in sets:
            gone = sum(not stay.issuperset((f"{name}/{n}/one", f"{name}/{n}/other")) for n in range(count))
            cells.append(f"{gone / count:.1%}")
        lines.append(f"| {tool.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pii(work: Path) -> str:
    """Share of values gone per type and language, and of texts changed that hold none, in Markdown."""
    planted = list(truth_pii.planted())
    clean = {
        "wrong check digit": list(truth_pii.invalid_numbers()),
        "other traps": [text for _, text in truth_pii.traps()],
    }
    texts = {f"planted/{n}": item.text for n, item in enumerate(planted)}
    texts |= {f"{name}/{n}": text for name, found in clean.items() for n, text in enumerate(found)}
    kinds = sorted({(item.type, item.language) for item in planted})
    lines = ["| | " + " | ".join(tool.name for tool in PII) + " |", "|---" * (len(PII) + 1) + "|"]
    found = [kept(tool, texts, work) for tool in PII]
    for type, language in kinds:
        values = {
            f"planted/{n}": item for n, item in enumerate(planted) if (item.type, item.language) == (type, language)
        }
        gone = [sum(i.text[i.start : i.end] not in out[name] for name, i in values.items()) for out in found]
        cells = " | ".join(f"{n / len(values):.1%}" for n in gone)
        lines.append(f"| {type}, {language} (n={len(values)}) | {cells} |")
    for name, traps in clean.items():
        changed = [sum(out[f"{name}/{n}"].strip() != text.strip() for n, text in enumerate(traps)) for out in found]
        cells = " | ".join(f"{n / len(traps):.1%}" for n in changed)
        lines.append(f"| changed, but nothing in it: {name} (n={len(traps)}) | {cells} |")
    return "\n".join(lines)


def kept(tool: Tool, texts: dict[str, str], work: Path) -> dict[str, str]:
    """The documents that a tool gives back, by name."""
    folder = work / "runs" / "truth"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in").mkdir(parents=True)
    with (folder / "in" / "0.jsonl").open("w", encoding="utf-8") as f:
        for name, text in texts.items():
            f.write(json.dumps({"name": name, "text": text}, ensure_ascii=False) + "\n")
    if tool.peer == "inhouse":
        names = list(texts)
        rows = built(folder, str(folder / "in" / "0.jsonl"), [tool.settings[0]], work)
        return {names[offset]: text for offset, text in rows.select("offset", "text").iter_rows()}
    home = work / "peers" / tool.peer
    env = {**os.environ, **ENV, "HF_HOME": str(folder / "hf"), "HF_ASSETS_CACHE": str(home / "assets")}
    command = juicer(tool, home, folder) if tool.peer == "juicer" else datatrove(tool, home, folder)
    env["DATA_JUICER_CACHE_HOME"] = str(home)
    done = subprocess.run([*no_network(), *command], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{tool.name} ended with {done.returncode}\n{done.stderr[-3000:]}")
    rows = [json.loads(line) for file in sorted((folder / "out").glob("*.jsonl")) for line in file.open("rb")]
    return {row.get("name", row.get("id")): row["text"] for row in rows}


def juicer(tool: Tool, home: Path, folder: Path) -> list[str]:
    """The command of data-juicer for one step."""
    step, setting = tool.settings
    recipe = yaml.safe_load((HERE / "peer_juicer.yaml").read_text(encoding="utf-8"))
    chosen = [item for item in recipe["process"] if step in item]
    if step == "document_minhash_deduplicator":
        chosen = [{step: {**MINHASH, "tokenization": setting}}]
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "process": chosen}), encoding="utf-8")
    options = {"config": folder / "recipe.yaml", "dataset_path": folder / "in", "export_path": folder / "out/0.jsonl"}
    flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    return [str(home / "bin" / "dj-process"), *flags, "--np", "1"]


def datatrove(tool: Tool, home: Path, folder: Path) -> list[str]:
    """The command of datatrove for one step."""
    return [
        *(str(home / "bin" / "python"), str(HERE / "peer_datatrove.py")),
        *(str(folder / "in"), str(folder), "1", *tool.settings),
    ]


if __name__ == "__main__":
    main()
