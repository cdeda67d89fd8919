"""The report as a table of text: one line per figure, one column per model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from inhouse.core.gate import Figure, figures_of

ROLES = ("base", "tuned", "exported")
NONE = "–"
TITLES = {
    "base": ("base", "基座模型"),
    "tuned": ("tuned", "微调后"),
    "exported": ("exported", "导出后"),
    "accuracy": ("Accuracy", "准确率"),
    "constrained_accuracy": ("Accuracy, labels only", "准确率（限定标签）"),
    "macro_f1": ("Macro-F1", "宏平均 F1"),
    "constrained_macro_f1": ("Macro-F1, labels only", "宏平均 F1（限定标签）"),
    "valid_answers": ("Valid answers", "有效回答率"),
    "exact_match": ("Exact match", "完全一致率"),
    "tool_calls": ("Tool calls", "工具调用正确率"),
    "tool_names": ("Tool calls, names only", "工具调用正确率（仅看名称）"),
    "perplexity": ("Perplexity", "困惑度"),
    "bytes": ("Size", "大小"),
    "tokens_per_s": ("Tokens/s", "生成速度（token/s）"),
    "ttft_p50_ms": ("First token, p50", "首 token 延迟 p50"),
    "latency_p50_ms": ("Latency, p50", "延迟 p50"),
    "latency_p95_ms": ("Latency, p95", "延迟 p95"),
    "peak_memory_bytes": ("Peak memory", "内存峰值"),
}
SHARES = (
    "accuracy",
    "constrained_accuracy",
    "macro_f1",
    "constrained_macro_f1",
    "valid_answers",
    "exact_match",
    "tool_calls",
    "tool_names",
)
LINES = (
    *SHARES,
    "perplexity",
    "bytes",
    "tokens_per_s",
    "latency_p50_ms",
)


@dataclass(frozen=True)
class TableRow:
    """One line: the figure's name, its title in the language asked for, and a cell per model."""

    name: str
    title: str
    cells: dict[str, str]


def render_table(
    report: Mapping[str, Any], language: Literal["en", "zh"] = "en", lines: tuple[str, ...] = LINES
) -> list[TableRow]:
    """The lines of the table; a figure that no model has is left out.

    `report` is a report file's content; shares come as percent with their 95 % interval: `81.3% (76.7-85.2)`.
    """
    figures = figures_of(report)
    roles = [role for role in ROLES if role in report["models"]]
    rows = []
    for name in lines:
        cells = {role: cell(name, figures.get(f"{role}.{name}")) for role in roles}
        if any(text != NONE for text in cells.values()):
            rows.append(TableRow(name, title(name, language), cells))
    return rows


def title(name: str, language: Literal["en", "zh"]) -> str:
    """What people call a figure or a model."""
    return TITLES[name][language == "zh"] if name in TITLES else name


def cell(name: str, figure: Figure | None) -> str:
    """A figure as text, with its unit and, where it has one, its 95 % interval."""
    if figure is None:
        return NONE
    if name in SHARES:
        return _with_interval(figure, 100, "%", 1)
    if name == "perplexity":
        return _with_interval(figure, 1, "", 2 if figure.value < 100 else 0)
    if name.endswith("bytes"):
        return size(figure.value)
    if name.endswith("_ms"):
        return duration(figure.value)
    return f"{figure.value:.0f}" if figure.value >= 10 else f"{figure.value:.1f}"


def points(figure: Figure) -> str:
    """A difference of shares in percentage points: `+75.0 (+69.2, +80.1)`."""
    text = f"{100 * figure.value:+.1f}"
    if figure.low is None or figure.high is None:
        return text
    return f"{text} ({100 * figure.low:+.1f}, {100 * figure.high:+.1f})"


def size(count: float) -> str:
    """Bytes in MB or GB (powers of ten, as file managers and hubs count)."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def duration(milliseconds: float) -> str:
    """Milliseconds, or seconds from ten seconds on."""
    return f"{milliseconds / 1000:.1f} s" if milliseconds >= 10_000 else f"{milliseconds:.0f} ms"


def _with_interval(figure: Figure, scale: float, unit: str, digits: int) -> str:
    text = f"{scale * figure.value:.{digits}f}{unit}"
    if figure.low is None or figure.high is None:
        return text
    return f"{text} ({scale * figure.low:.{digits}f}-{scale * figure.high:.{digits}f})"
