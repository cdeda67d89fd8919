"""The dataset card: what a person should know before using the data, in English and in Chinese."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Language = Literal["en", "zh"]

WORDS: dict[str, dict[Language, str]] = {
    "title": {"en": "Dataset card", "zh": "数据集说明"},
    "rows": {"en": "Rows", "zh": "数据量"},
    "add_up": {
        "en": "{read} rows were read: {kept} are kept, {dropped} were dropped by a step, {rejected} could not be used.",
        "zh": "共读取 {read} 行：保留 {kept} 行，处理步骤去除 {dropped} 行，另有 {rejected} 行无法使用。",
    },
    "part": {"en": "part", "zh": "划分"},
    "words": {"en": "words", "zh": "词数"},
    "chars": {"en": "characters", "zh": "字符数"},
    "leaks": {
        "en": "Rows of the training part whose text also stands in the test part: {count}.",
        "zh": "训练集中与测试集文本完全相同的行数：{count}。",
    },
    "lengths": {"en": "Lengths", "zh": "长度分布"},
    "lengths_note": {
        "en": "Per row, after the steps, without the prompt. Words are separated by white space.",
        "zh": "按行统计，为处理后的文本，不含提示词模板。词以空白分隔，中文请看字符数。",
    },
    "labels": {"en": "Labels", "zh": "标签分布"},
    "label": {"en": "label", "zh": "标签"},
    "scripts": {"en": "Scripts", "zh": "文字种类"},
    "scripts_note": {"en": "Share of all letters", "zh": "占全部字母与汉字的比例"},
    "gone": {"en": "Not in the dataset", "zh": "未收入的数据"},
    "step": {"en": "step", "zh": "步骤"},
    "reason": {"en": "reason", "zh": "原因"},
    "unusable": {"en": "could not be used", "zh": "无法使用"},
    "none": {"en": "Nothing was left out.", "zh": "没有去除任何数据。"},
    "files": {
        "en": "`rejected.jsonl` and `dropped.parquet` name every such row with its source, place and reason.",
        "zh": "`rejected.jsonl` 与 `dropped.parquet` 逐行记录其来源、位置和原因。",
    },
    "sources": {"en": "Sources and terms", "zh": "来源与许可"},
    "name": {"en": "name", "zh": "名称"},
    "from": {"en": "from", "zh": "来自"},
    "licence": {"en": "licence", "zh": "许可证"},
    "use": {"en": "allowed use", "zh": "允许用途"},
    "read": {"en": "read", "zh": "读取"},
    "kept": {"en": "kept", "zh": "保留"},
    "unknown": {"en": "not stated", "zh": "未说明"},
    "rebuild": {"en": "How to rebuild", "zh": "如何重建"},
    "rebuild_note": {
        "en": "Run the project again (`inhouse run <project file>`): equal sources, settings and seed ({seed}) give "
        "equal bytes. `dataset.json` holds the settings of every step and the hash of every source. "
        "Rows are ordered by id, which mixes the sources.",
        "zh": "重新运行项目（`inhouse run <项目文件>`）即可：来源、配置和随机种子（{seed}）不变，结果逐字节相同。"
        "`dataset.json` 记录了每个步骤的配置和每个来源的哈希值。各行按 id 排序，因此不同来源会混排。",
    },
}
USES: dict[str, str] = {"any": "不限", "evaluation": "仅限评估", "research": "仅限研究", "unknown": "未说明"}


def card(facts: Mapping[str, Any]) -> str:
    """The card as Markdown, English first, from what dataset.json says."""
    return f"{_card(facts, 'en')}\n---\n\n{_card(facts, 'zh')}"


def _card(facts: Mapping[str, Any], language: Language) -> str:
    sections = [
        f"# {_word('title', language)}",
        _rows(facts, language),
        _lengths(facts, language),
        _labels(facts, language),
        _scripts(facts, language),
        _gone(facts, language),
        _sources(facts, language),
        f"## {_word('rebuild', language)}\n\n{_word('rebuild_note', language).format(seed=facts['seed'])}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _word(name: str, language: Language) -> str:
    return WORDS[name][language]


def _table(head: Sequence[str], body: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _rows(facts: Mapping[str, Any], language: Language) -> str:
    kept = sum(facts["rows"].values())
    totals = {"read": facts["read"], "kept": kept}
    totals |= {name: facts[name]["total"] for name in ("dropped", "rejected")}
    table = _table(
        [_word("part", language), _word("rows", language)],
        [[part, count] for part, count in facts["rows"].items() if count],
    )
    leaks = _word("leaks", language).format(count=facts["test_texts_in_train"])
    return f"## {_word('rows', language)}\n\n{_word('add_up', language).format_map(totals)}\n\n{table}\n\n{leaks}"


def _lengths(facts: Mapping[str, Any], language: Language) -> str:
    head = [_word("part", language), "", "min", "p50", "p90", "p99", "max"]
    body = [
        [part, _word(unit, language), *values.values()]
        for part, units in facts["lengths"].items()
        for unit, values in units.items()
    ]
    return f"## {_word('lengths', language)}\n\n{_word('lengths_note', language)}\n\n{_table(head, body)}"


def _labels(facts: Mapping[str, Any], language: Language) -> str:
    if not facts["labels"]:
        return ""
    parts = [part for part, count in facts["rows"].items() if count]
    body = [[label, *(facts["labels_per_part"][part][label] for part in parts)] for label in facts["labels"]]
    return f"## {_word('labels', language)}\n\n{_table([_word('label', language), *parts], body)}"


def _scripts(facts: Mapping[str, Any], language: Language) -> str:
    shares = ", ".join(f"{name} {share:.1%}" for name, share in facts["scripts"].items())
    return f"## {_word('scripts', language)}\n\n{_word('scripts_note', language)}: {shares}" if shares else ""


def _gone(facts: Mapping[str, Any], language: Language) -> str:
    body: list[list[object]] = [
        [_word("unusable", language), reason, count] for reason, count in facts["rejected"]["reasons"].items()
    ]
    for step in facts["dropped"]["steps"]:
        body += [[step["step"], reason, count] for reason, count in step["reasons"].items()]
    if not body:
        return f"## {_word('gone', language)}\n\n{_word('none', language)}"
    table = _table([_word("step", language), _word("reason", language), _word("rows", language)], body)
    return f"## {_word('gone', language)}\n\n{table}\n\n{_word('files', language)}"


def _sources(facts: Mapping[str, Any], language: Language) -> str:
    head = [_word(name, language) for name in ("name", "from", "licence", "use", "part", "read", "kept")]
    body = [
        [
            source["name"],
            f"`{source['from']}`",
            source["licence"] or _word("unknown", language),
            _use(source["allowed_use"], language),
            source["part"] or "—",
            source["read"],
            source["kept"],
        ]
        for source in facts["sources"]
    ]
    return f"## {_word('sources', language)}\n\n{_table(head, body)}"


def _use(name: str, language: Language) -> str:
    if language == "zh":
        return USES[name]
    return _word("unknown", "en") if name == "unknown" else name
