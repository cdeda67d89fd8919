"""The child process that holds a model in torch. Run by `transformers_serving.start`, with its settings as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from inhouse.core.artifact import Artifact
from inhouse.core.errors import InhouseError, UserError
from inhouse.core.model import ModelFacts
from inhouse.core.protocols import Input
from inhouse.core.run import die_with_parent
from inhouse.core.settings import usable_cores
from inhouse.core.store import RECORD
from inhouse.engines.process import Reporter
from inhouse.engines.wire_child import ChildEngine, serve


def main(argument: str) -> int:
    """Load the model, report the socket, and serve until the parent says stop or ends."""
    asked = json.loads(argument)
    die_with_parent(asked["parent"])
    reporter = Reporter()
    try:
        engine = load(asked)
    except InhouseError as error:
        reporter.error(error)
        return error.exit_code
    return serve(engine, reporter)


def load(asked: dict[str, Any]) -> ChildEngine:
    """The engine for what a model's files hold: one that writes, one that names labels, one that only embeds."""
    from inhouse.engines.model_files import check_model

    source = input_of(Path(asked["model"]))
    facts = ModelFacts.model_validate(source.record.facts["model"])
    check_model(source.path / facts.main, facts.remote_code)
    import torch  # seconds: what is wrong with the files is said before

    torch.set_num_threads(asked["threads"] or usable_cores())
    return _labels(source, asked) if facts.labels else _writes(source, facts, asked)


def input_of(model: Path) -> Input:
    """The artifact that a model file or folder belongs to; one without a record is described by itself."""
    for root in (model, model.parent):
        if (root / RECORD).is_file():
            return Input(Artifact.model_validate_json((root / RECORD).read_text(encoding="utf-8")), root)
    gguf = model.suffix == ".gguf"
    facts = ModelFacts(
        format="gguf" if gguf else "safetensors",
        main=model.name if gguf else ".",
        name=model.name,
        labels=() if gguf else _labels_of(model),
    )
    record = Artifact(  # never published: only its facts are read
        id="-", kind="model", stage="-", node="-", stage_version="-", recipe="-", params={}, created="-",
        facts={"model": facts.model_dump(mode="json")},
    )  # fmt: skip
    return Input(record, model.parent if gguf else model)


def _labels_of(folder: Path) -> tuple[str, ...]:
    from inhouse.engines.classifier import labels_in

    try:
        return labels_in(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError("torch.unreadable", path=folder.name, problem=type(error).__name__) from None


def _labels(source: Input, asked: dict[str, Any]) -> ChildEngine:
    from inhouse.engines.classifier import most_tokens, open_classifier
    from inhouse.engines.label_serving import LabelServing

    engine = open_classifier(source, dtype=asked.get("dtype", "auto"), threads=asked["threads"])
    most = most_tokens(engine.model) or asked["context_length"]
    return LabelServing(engine, min(most, asked["context_length"]), asked["parallel"])


def _writes(source: Input, facts: ModelFacts, asked: dict[str, Any]) -> ChildEngine:
    from inhouse.engines.adapters import open_adapters
    from inhouse.engines.classifier import most_tokens, reads_both_ways
    from inhouse.engines.torch_chat import end_tokens
    from inhouse.engines.torch_serving import Loaded, TorchServing
    from inhouse.engines.transformers import check_vocabulary, load_model, load_tokenizer, open_model

    before: dict[str | None, Any] = {}
    if facts.unmerged:  # a bare base, read with an adapter's virtual tokens before every prompt
        engine = open_model(source, dtype=asked.get("dtype", "auto"), threads=asked["threads"])
        model, tokenizer, before[None] = engine.model, engine.tokenizer, engine.before
    else:
        model, tokenizer = load_model(source, asked.get("dtype", "auto")).eval(), load_tokenizer(source)
        check_vocabulary(model, tokenizer, facts.name)
    most = most_tokens(model) or asked["context_length"]
    writes = not reads_both_ways(model)
    ends = end_tokens(model, tokenizer) if writes else frozenset()
    adapters = {name: Path(folder) for name, folder in asked["adapters"].items()}
    served: Any = model
    if adapters:
        served, own = open_adapters(model, adapters)
        before.update(own)
    length = min(most, asked["context_length"])
    loaded = Loaded(served.eval(), tokenizer, ends, length, asked["parallel"], tuple(adapters), before, writes)
    return TorchServing(loaded)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
