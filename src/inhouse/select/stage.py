"""Choose the model to start from: find it, fetch it, check it, and record what it is and on what terms."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inhouse.core.artifact import Kind, Licence
from inhouse.core.errors import UserError
from inhouse.core.model import ModelFacts
from inhouse.core.model import ModelParams as ModelParams
from inhouse.core.protocols import Context, Made
from inhouse.select import remote
from inhouse.select.inspect import FAMILIES, inspect
from inhouse.select.known import KnownModel, catalogue, known_model
from inhouse.select.place import place
from inhouse.sources import fetch, fingerprint, scheme_of
from inhouse.sources.cache import source_facts
from inhouse.sources.hub import WITH_CODE, is_commit, parse
from inhouse.sources.licences import Reading, copyleft_note, licence_files, normal, read_licences, settle, use_of

VERSION = "2"
KIND: Kind = "model"


@dataclass(frozen=True)
class Chosen:
    """What a `base` turned out to name."""

    uri: str
    subject: str
    sha256: str | None
    known: KnownModel | None


def choose(params: ModelParams, project_dir: Path) -> Chosen:
    """Resolve `base`: a source URI, a path that exists, or a name of the catalogue."""
    known = _from_catalogue(params.base, project_dir)
    uri = known.uri if known else params.base
    scheme = scheme_of(uri)
    if params.revision is not None:
        if scheme not in ("hf", "ms") or "@" in uri:
            raise UserError("select.revision", base=params.base, revision=params.revision)
        repository, mark, file = uri.partition("#")
        uri = f"{repository}@{params.revision}{mark}{file}"
    if params.trust_remote_code:
        uri = _with_code(uri, scheme, params.base)
    subject = known.name if known else _subject(uri, scheme)
    return Chosen(uri, subject, params.sha256 or (known.sha256 if known else None), known)


def _with_code(uri: str, scheme: str, base: str) -> str:
    """The URI that brings a model's code along. Raises select.unpinned_code when it could be other code tomorrow."""
    if scheme not in ("hf", "ms") or "#" in uri or not is_commit(parse(uri).revision):
        raise UserError("select.unpinned_code", base=base)
    return f"{uri}#{WITH_CODE}"


def _from_catalogue(base: str, project_dir: Path) -> KnownModel | None:
    """The known model that a bare name means. A path that exists wins unless the catalogue has that very name."""
    if base in catalogue():
        return known_model(base)
    looks_like_a_path = "/" in base or "\\" in base or base.startswith((".", "~")) or base.endswith(".gguf")
    if scheme_of(base) != "local" or looks_like_a_path or (project_dir / base).exists():
        return None
    return known_model(base)


def _subject(uri: str, scheme: str) -> str:
    return Path(uri).name if scheme == "local" else uri


def external(params: ModelParams, project_dir: Path) -> dict[str, str]:
    """The base's fingerprint, for the recipe: a pinned hash, the hash of local files, or the URI."""
    chosen = choose(params, project_dir)
    if chosen.sha256 is not None:
        return {chosen.uri: chosen.sha256.lower()}
    return {chosen.uri: fingerprint(chosen.uri, project_dir)}


def run(params: ModelParams, context: Context) -> Made:
    """Fetch and check the base, put it into the artifact, and record its header and terms."""
    chosen = choose(params, context.project_dir)
    if scheme_of(chosen.uri) in ("http", "https"):
        return _run_remote(params, chosen, context)
    path = fetch(
        chosen.uri,
        context.sources,
        offline=context.offline,
        project_dir=context.project_dir,
        sha256=chosen.sha256,
        events=context.events,
    )
    facts = _named(inspect(path, params.trust_remote_code), chosen)
    if facts.remote_code:
        context.events.note("select.trusts_code", uri=chosen.uri, files=", ".join(p.name for p in path.glob("*.py")))
    if facts.architecture not in FAMILIES:
        context.events.note("select.untried_family", family=facts.architecture, families=", ".join(sorted(FAMILIES)))
    licences = terms(params, chosen, path, context)
    place(path, facts, context)
    _keep_licence_texts(path, context.out)
    source = {"uri": chosen.uri, **source_facts(path)}
    return Made(facts={"model": facts.model_dump(), "source": source}, licences=licences)


def _named(facts: ModelFacts, chosen: Chosen) -> ModelFacts:
    """A name that people know: the catalogue's, else what the header says."""
    return facts.model_copy(update={"name": chosen.known.name}) if chosen.known else facts


def _run_remote(params: ModelParams, chosen: Chosen, context: Context) -> Made:
    facts = remote.look_up(chosen.uri, params.name, context.offline)
    said = json.dumps({"url": facts.main, "model": facts.name}, indent=1, sort_keys=True)
    (context.out / "remote.json").write_text(said + "\n", encoding="utf-8")
    licences = _stated(params, facts.name, []) or settle(facts.name, [Reading("LicenseRef-unknown", "nowhere")])
    source = {"uri": chosen.uri}
    return Made(facts={"model": facts.model_dump(), "source": source}, licences=_allowed(params, licences))


def terms(params: ModelParams, chosen: Chosen, path: Path, context: Context) -> tuple[Licence, ...]:
    """The base's terms from every place that names them; what the project file states stands in their place."""
    readings = read_licences(path)
    if (named := _in_gguf(path)) is not None:
        readings.append(Reading(named, "GGUF general.license"))
    if chosen.known is not None:
        readings.insert(0, Reading(chosen.known.licence, "catalogue"))
    if stated := _stated(params, chosen.subject, readings):
        return _allowed(params, stated)
    if not readings:
        context.events.note("select.no_licence", subject=chosen.subject)
        readings = [Reading("LicenseRef-unknown", "nowhere")]
    found = settle(chosen.subject, readings, chosen.known.page if chosen.known else None)
    if len(found) > 1 and params.allowed_use is None:
        said = "; ".join(f"{x.spdx} ({x.source})" for x in found)
        context.events.note("select.licence_conflict", subject=chosen.subject, said=said)
    return _allowed(params, found)


def _allowed(params: ModelParams, licences: tuple[Licence, ...]) -> tuple[Licence, ...]:
    """The records with the use that the project file states, if it does."""
    if params.allowed_use is None:
        return licences
    stated = "project file (model.allowed_use)"
    return tuple(
        x.model_copy(update={"use": params.allowed_use, "source": f"{x.source}; use: {stated}"}) for x in licences
    )


def _stated(params: ModelParams, subject: str, readings: list[Reading]) -> tuple[Licence, ...]:
    if params.licence is None:
        return ()
    spdx = normal(params.licence)
    others = [f"{r.spdx} ({r.source})" for r in readings if r.spdx != spdx]
    notes = (f"read elsewhere: {'; '.join(others)}" if others else None, copyleft_note(spdx))
    note = "; ".join(n for n in notes if n) or None
    return (Licence(subject=subject, spdx=spdx, source="project file (model.licence)", use=use_of(spdx), note=note),)


def _in_gguf(path: Path) -> str | None:
    from inhouse.engines.gguf_header import read_header

    file = path if path.is_file() else next(iter(sorted(path.glob("*.gguf"))), None)
    if file is None:
        return None
    header = read_header(file)
    named: Any = header.text("general.license")
    if named == "other":
        named = header.text("general.license.name") or named
    return normal(named) if named else None


def _keep_licence_texts(path: Path, out: Path) -> None:
    for text in licence_files(path):
        target = out / "licence" / text.name
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            target.write_bytes(text.read_bytes())
