"""The dataset card: what a person should know before using the data, in English and in Chinese, with pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from inhouse.core.messages import catalogue
from inhouse.data.pictures import different, draw
from inhouse.sources.licences import STRICTEST, strictest

Language = Literal["en", "zh"]
PICTURES = "pictures"  # folder beside the card
DUPLICATES = ("exact_dedup", "near_dedup")


def write(facts: Mapping[str, Any], out: Path) -> None:
    """Write README.md and the pictures it shows, from what dataset.json says."""
    drawn = draw(facts)
    for name, picture in drawn.items():
        path = out / PICTURES / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(picture, encoding="utf-8")
    (out / "README.md").write_text(card(facts, tuple(drawn)), encoding="utf-8")


def card(facts: Mapping[str, Any], pictures: Sequence[str] = ()) -> str:
    """The card as Markdown, English first; `pictures` are the files that lie in the folder beside it."""
    return f"{_card(facts, 'en', pictures)}\n---\n\n{_card(facts, 'zh', pictures)}"


def _card(facts: Mapping[str, Any], language: Language, pictures: Sequence[str]) -> str:
    told = {
        "rows": _rows(facts, language),
        "lengths": _lengths(facts, language),
        "labels": _labels(facts, language),
        "languages": _languages(facts, language),
        "topics": _topics(facts, language),
        "duplicates": _duplicates(facts, language),
        "leaks": _leaks(facts, language),
        "personal": _personal(facts, language),
        "mix": _mix(facts, language),
        "made": _made(facts, language),
        "gone": _gone(facts, language),
        "reports": _reports(facts),
        "sources": _sources(facts, language),
        "not_for": _not_for(facts, language),
        "split": _split(facts, language),
        "rebuild": _rebuild(facts, language),
    }
    shown = {"rows": "funnel.svg", "lengths": "lengths.svg", "labels": "labels.svg", "languages": "languages.svg"}
    sections = [f"# {_word('title', language)}"]
    for name, body in told.items():
        if not body:
            continue
        sections += [f"## {_word(name, language)}", body]
        if shown.get(name) in pictures:
            sections.append(f"![{_word(f'alt_{name}', language)}]({PICTURES}/{shown[name]})")
    return "\n\n".join(sections) + "\n"


def _word(name: str, language: Language) -> str:
    return catalogue()[f"card.data.{name}"][language]


def _table(head: Sequence[str], body: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    """A value that cannot end its cell, and is no HTML: names and labels come from data."""
    return " ".join(str(value).split()).replace("<", "&lt;").replace("|", "\\|")


def _rows(facts: Mapping[str, Any], language: Language) -> str:
    totals = {"read": facts["read"], "made": facts.get("made", 0), "kept": different(facts)}
    totals |= {name: facts[name]["total"] for name in ("dropped", "rejected")}
    told = [_word("add_up_made" if totals["made"] else "add_up", language).format_map(totals)]
    if (written := sum(facts["rows"].values())) != totals["kept"]:
        told.append(_word("add_up_repeats", language).format(different=totals["kept"], written=written))
    body = [[part, count] for part, count in facts["rows"].items() if count]
    table = _table([_word("part", language), _word("rows", language)], body)
    return f"{(' ' if language == 'en' else '').join(told)}\n\n{table}"


def _lengths(facts: Mapping[str, Any], language: Language) -> str:
    head = [_word("part", language), "", "min", "p50", "p90", "p99", "max"]
    body = [
        [part, _word(unit, language), *values.values()]
        for part, units in facts["lengths"].items()
        for unit, values in units.items()
    ]
    return f"{_word('lengths_note', language)}\n\n{_table(head, body)}"


def _labels(facts: Mapping[str, Any], language: Language) -> str:
    if not facts["labels"]:
        return ""
    parts = [part for part, count in facts["rows"].items() if count]
    body = [[label, *(facts["labels_per_part"][part][label] for part in parts)] for label in facts["labels"]]
    table = _table([_word("label", language), *parts], body)
    train = sorted(facts["labels_per_part"]["train"].values())
    if not train[-1]:
        return table
    if not train[0]:
        return f"{_word('label_missing', language).format(count=train.count(0))}\n\n{table}"
    return f"{_word('balance', language).format(ratio=f'{train[-1] / train[0]:.3g}')}\n\n{table}"


def _languages(facts: Mapping[str, Any], language: Language) -> str:
    lines = []
    if found := facts.get("languages"):
        total = sum(found.values())
        shares = ", ".join(f"{name} {count:,} ({count / total:.1%})" for name, count in found.items())
        lines.append(f"{_word('languages_note', language)}{shares}")
    if facts["scripts"]:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in facts["scripts"].items())
        lines.append(f"{_word('scripts_note', language)}{shares}")
    return "\n\n".join(lines)


def _topics(facts: Mapping[str, Any], language: Language) -> str:
    """Shares and terms of the topics; datasets of earlier versions have none."""
    if not (found := facts.get("topics")):
        return ""
    apart = ", " if language == "en" else "、"
    body = [[f"{topic['share']:.1%}", apart.join(topic["terms"])] for topic in found]
    return f"{_word('topics_note', language)}\n\n{_table([_word('share', language), _word('terms', language)], body)}"


def _removed(facts: Mapping[str, Any], steps: Sequence[str]) -> dict[str, int]:
    """Reasons with their counts, over the steps of these names."""
    found: dict[str, int] = {}
    for step in facts["dropped"]["steps"]:
        if step["step"] in steps:
            for reason, count in step["reasons"].items():
                found[reason] = found.get(reason, 0) + count
    return found


def _duplicates(facts: Mapping[str, Any], language: Language) -> str:
    looked = [step["use"] for step in facts["steps"] if step["use"] in DUPLICATES]
    if not looked:
        return _word("duplicates_unknown", language)
    found = sum(_removed(facts, looked).values())
    share = f"{found / facts['read']:.1%}" if facts["read"] else "0 %"
    return _word("duplicates_note", language).format(count=found, share=share, steps=_list(looked))


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(names))


def _leaks(facts: Mapping[str, Any], language: Language) -> str:
    lines = [_word("leaks_note", language).format(count=facts["test_texts_in_train"])]
    if any(step["use"] == "leaks" for step in facts["steps"]):
        lines.append(_word("leaks_removed", language).format(count=sum(_removed(facts, ["leaks"]).values())))
    else:
        lines.append(_word("leaks_unknown", language))
    repeated = [n for reason, n in _removed(facts, DUPLICATES).items() if "_of_" in reason]
    if repeated:
        lines.append(_word("leaks_duplicates", language).format(count=sum(repeated)))
    return " ".join(lines) if language == "en" else "".join(lines)


def _personal(facts: Mapping[str, Any], language: Language) -> str:
    found = facts.get("pii")
    if not any(step["use"] == "pii" for step in facts["steps"]):
        return _word("personal_unknown", language)
    if not found:
        return _word("personal_none", language)
    head = [_word("type", language), _word("action", language), _word("count", language)]
    body = [[kind, action, count] for kind, actions in found["types"].items() for action, count in actions.items()]
    return f"{_word('personal_note', language).format(rows=found['rows'])}\n\n{_table(head, body)}"


def _mix(facts: Mapping[str, Any], language: Language) -> str:
    found = facts.get("mix")
    if not found:
        return ""
    head = [_word(name, language) for name in ("name", "asked", "achieved", "different", "copies", "repeats")]
    body = [
        [s["name"], f"{s['asked']:.2%}", f"{s['achieved']:.2%}", s["rows"], s["copies"], s["repeats"]]
        for s in found["sources"]
    ]
    unit = _word(f"by_{found['by']}", language) + (_word("estimated", language) if found["estimated"] else "")
    return f"{_word('mix_note', language).format(unit=unit, rows=found['rows'])}\n\n{_table(head, body)}"


def _made(facts: Mapping[str, Any], language: Language) -> str:
    if not facts.get("made"):
        return ""
    return _word("made_note", language).format(count=facts["made"], train=facts["rows"]["train"])


def _gone(facts: Mapping[str, Any], language: Language) -> str:
    body: list[list[object]] = [
        [_word("unusable", language), _reason(reason, language), count]
        for reason, count in facts["rejected"]["reasons"].items()
    ]
    for step in facts["dropped"]["steps"]:
        body += [[step["step"], _reason(reason, language), count] for reason, count in step["reasons"].items()]
    if not body:
        return _word("none", language)
    table = _table([_word("step", language), _word("reason", language), _word("rows", language)], body)
    return f"{table}\n\n{_word('files', language)}"


def _reason(code: str, language: Language) -> str:
    """A reason in words; the code itself where nobody gave words."""
    found = catalogue().get(f"data.reason.{code}")
    return code if found is None else found[language]


def _reports(facts: Mapping[str, Any]) -> str:
    """Numbers that steps counted over all rows; the words and lines they name are text of rows and stay out."""
    lines = []
    for step, told in facts.get("reports", {}).items():
        numbers = [f"{name} {value:,}" for name, value in told.items() if isinstance(value, int | float)]
        if numbers:
            lines.append(f"- `{step}`: {', '.join(numbers)}")
    return "\n".join(lines)


def _sources(facts: Mapping[str, Any], language: Language) -> str:
    head = [_word(name, language) for name in ("name", "from", "licence", "use", "consent", "part", "read", "kept")]
    body = [
        [
            source["name"],
            f"`{source['from']}`",
            source["licence"] or _word("unknown", language),
            _word(f"use_{source['allowed_use']}", language),
            _word(f"consent_{source['consent']}", language),
            source["part"] or "—",
            source["read"],
            source["kept"],
        ]
        for source in facts["sources"]
    ]
    together = _word("together", language).format(use=_word(f"use_{_together(facts)}", language))
    return f"{_table(head, body)}\n\n{together}"


def _together(facts: Mapping[str, Any]) -> str:
    """What the terms of all sources together allow."""
    return strictest(source["allowed_use"] for source in facts["sources"])


def _not_for(facts: Mapping[str, Any], language: Language) -> str:
    return "\n".join(f"- {line}" for line in _prohibited(facts, language))


def _prohibited(facts: Mapping[str, Any], language: Language) -> Iterator[str]:
    for use in STRICTEST[:-1]:
        names = [source["name"] for source in facts["sources"] if source["allowed_use"] == use]
        if names:
            yield _word(f"not_{use}", language).format(names=_list(names))
    for consent in ("internal", "evaluation"):
        names = [source["name"] for source in facts["sources"] if source["consent"] == consent]
        if names:
            yield _word(f"not_agreed_{consent}", language).format(names=_list(names))
    if _together(facts) == "any":
        yield _word("not_any", language)
    if facts["rows"].get("test"):
        yield _word("not_test", language)
    if facts.get("pii"):
        yield _word("not_persons", language)


def _split(facts: Mapping[str, Any], language: Language) -> str:
    split = facts["split"]
    lines = [_word("split_stated", language)] if any(s["part"] for s in facts["sources"]) else []
    if split is None:
        lines.append(_word("split_default", language))
    else:
        by = next((name for name in ("time", "group") if split.get(name)), "content")
        told = {"test": f"{split['test']:.1%}", "valid": f"{split['valid']:.1%}", "column": split.get(by) or ""}
        lines.append(_word(f"split_{by}", language).format_map(told))
    return " ".join(lines) if language == "en" else "".join(lines)


def _rebuild(facts: Mapping[str, Any], language: Language) -> str:
    steps = " → ".join(step["use"] for step in facts["steps"]) or "—"
    return _word("rebuild_note", language).format(seed=facts["seed"], steps=steps)
