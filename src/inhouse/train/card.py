"""The cards of a trained model: README.md beside its folders, and in each of them, for these are what people copy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.artifact import Artifact
from inhouse.core.model_card import base_model, front_matter, licence_facts
from inhouse.core.protocols import Input
from inhouse.dataset import FACTS
from inhouse.engines.rope import window_of

if TYPE_CHECKING:
    from inhouse.train.result import Left, Origin

CARD = "README.md"
SPOKEN = 0.01  # share of the rows from which on a language is told: fewer may be mistaken


def write_cards(out: Path, origin: Origin, left: Left) -> None:
    """Write the model's card, and one into merged/ and adapter/."""
    settings = json.loads((out / "merged" / "config.json").read_text(encoding="utf-8"))
    tail = f"{_about_labels(origin, left)}{about_reach(settings)}{_licences(origin)}"
    adapter = "- `adapter/`: PEFT adapter. Load it with `PeftModel.from_pretrained(base, 'adapter')`.\n"
    merged = "base and adapter as one Hugging Face folder" if left.adapter else "the whole model, a Hugging Face folder"
    if left.unmerged:
        merged = "the base as it was; the adapter cannot be merged into it and must be loaded with it"
    facts = _facts(origin, "adapter" if left.unmerged else "finetune")
    folders = f"{adapter if left.adapter else ''}- `merged/`: {merged}.\n\n"
    (out / CARD).write_text(f"{front_matter(facts)}{_title(origin)}{folders}{tail}", encoding="utf-8")
    facts = _bare(origin) if left.unmerged else _facts(origin, "finetune")
    what = f"This folder: {merged}.\n\n"
    (out / "merged" / CARD).write_text(f"{front_matter(facts)}{_title(origin)}{what}{tail}", encoding="utf-8")
    if left.adapter:
        facts = {**_facts(origin, "adapter"), "tags": ["inhouse", _peft_type(out / "adapter")]}
        what = "This folder: a PEFT adapter. Load it with `PeftModel.from_pretrained(base, folder)`.\n\n"
        (out / "adapter" / CARD).write_text(f"{front_matter(facts)}{_title(origin)}{what}{tail}", encoding="utf-8")


def _peft_type(folder: Path) -> str:
    """What PEFT calls the kind of an adapter: lora, prompt_tuning, …"""
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return str(settings["peft_type"]).lower()


def _bare(origin: Origin) -> dict[str, Any]:
    """What is known of the base as it was, which nothing was trained into."""
    wanted = ("license", "license_name", "library_name", "pipeline_tag")
    return {name: value for name, value in _facts(origin, "finetune").items() if name in wanted}


def _facts(origin: Origin, relation: str) -> dict[str, Any]:
    """What the hub's tools read; `relation`: how the model came from its base."""
    return {
        **licence_facts(origin.base.record.licences),
        "base_model": base_model(origin.base.record, origin.facts.name),
        "base_model_relation": relation,
        "datasets": origin.datasets,
        "language": origin.languages,
        "library_name": "peft" if relation == "adapter" else "transformers",
        "pipeline_tag": "text-classification" if origin.labels else "text-generation",
        "tags": ["inhouse"],
    }


def datasets_of(inputs: Iterable[Artifact]) -> tuple[str, ...]:
    """The names of the sources that datasets were made from."""
    sources = [source for record in inputs for source in record.params.get("sources", ())]
    return tuple(dict.fromkeys(str(source["name"]) for source in sources))


def languages_of(dataset: Input) -> tuple[str, ...]:
    """The languages of a dataset whose build told them apart, most rows first."""
    try:
        said = json.loads((dataset.path / FACTS).read_text(encoding="utf-8")).get("languages") or {}
    except FileNotFoundError:
        return ()
    least = SPOKEN * sum(said.values())
    return tuple(code for code, rows in said.items() if rows >= least and code.isalpha() and code != "und")


def _title(origin: Origin) -> str:
    """What it is and what it was made from."""
    return (
        f"# {origin.facts.name}, fine-tuned\n\n"
        f"{len(origin.samples) // origin.unit} training conversations; base artifact `{origin.base.record.id}`.\n\n"
    )


def _licences(origin: Origin) -> str:
    listed = "\n".join(f"- {item.subject}: {item.spdx}" for item in origin.base.record.licences) or "- see record.json"
    return f"## Licences inherited from the base\n\n{listed}\n"


def about_reach(settings: Mapping[str, Any]) -> str:
    """How far the model looks back, and how its positions are stretched, where that is not as usual."""
    lines, window = [], window_of(settings)
    if window is not None:
        lines.append(
            f"- Attention sees the last {window:,} tokens (`sliding_window`). An engine that does not know it, such as "
            "llama.cpp for many architectures, gives other answers to longer texts."
        )
    rope = settings.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        native = rope.get("original_max_position_embeddings")
        trained = f", from {native:,} positions" if native else ""
        factor = f", factor {rope['factor']:g}" if "factor" in rope else ""
        lines.append(
            f"- Positions are stretched (`rope_parameters`: {rope['rope_type']}{factor}{trained}); up to "
            f"{settings.get('max_position_embeddings', 0):,} in this folder's config.json."
        )
    return "## How far it reads\n\n" + "\n".join(lines) + "\n\n" if lines else ""


def _about_labels(origin: Origin, left: Left) -> str:
    """What a classifier's outputs stand for, and how to open it."""
    if not origin.labels:
        return ""
    base = f"AutoModelForSequenceClassification.from_pretrained(base, num_labels={len(origin.labels)})"
    listed = "\n".join(f"{place}. {label}" for place, label in enumerate(origin.labels))
    under = f"Put `adapter/` on `{base}`: it holds the head too.\n\n" if left.adapter else ""
    return (
        "## Labels\n\nA classifier: open `merged/` with `AutoModelForSequenceClassification`. Its outputs, from 0:\n\n"
        f"{listed}\n\n{under}"
    )
