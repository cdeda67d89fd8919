"""The report as one self-contained page: English and Chinese, no request to anywhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inhouse.core.gate import Figure, figures_of
from inhouse.evaluate.table import LINES, ROLES, SHARES, TITLES, cell, points, render_table, size

TEMPLATE = "page.html.j2"
# Only presets the language; the page works without it.
SCRIPT = (
    "if ((navigator.language || '').toLowerCase().startsWith('zh')) document.getElementById('lang-zh').checked = true;"
)
MATRIX_LIMIT = 24  # labels beyond which a matrix is not readable: the page lists the commonest confusions instead
SPEED_LINES = ("latency_p50_ms", "latency_p95_ms", "ttft_p50_ms", "tokens_per_s")
PAGE_LINES = (*LINES[:-1], "ttft_p50_ms", "latency_p50_ms", "latency_p95_ms", "peak_memory_bytes")
PARITY_TITLES = {
    "template_ids_equal": ("Prompts read as the same tokens", "提示词 token 完全一致的比例"),
    "greedy_agreement": ("Greedy answers that are identical", "贪心解码答案一致的比例"),
    "equal_tokens": ("Tokens that are identical", "token 一致的比例"),
    "max_logit_difference": ("Largest difference of a log probability", "对数概率最大差异"),
    "mean_logit_difference": ("Mean difference of log probabilities", "对数概率平均差异"),
    "adapter_vs_merged": ("Adapter against merged: largest logit difference", "适配器与合并后模型：logit 最大差异"),
    "kl": ("KL divergence from the tuned model", "与微调模型的 KL 散度"),
}
DIFFERENCES = (("tuned", "base"), ("exported", "tuned"))
Words = tuple[str, str]


def render_page(report: Mapping[str, Any]) -> str:
    """HTML of a full report. Every text from data or models is escaped: both are untrusted."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8")
    page = environment.from_string(source)
    figures = figures_of(report)
    roles = [role for role in ROLES if role in report["models"]]
    return page.render(
        report=report,
        figures=figures,
        roles=roles,
        titles=TITLES,
        tiles=tiles(figures, roles),
        summary=summary(report, figures, roles),
        table=zip(render_table(report, "en", PAGE_LINES), render_table(report, "zh", PAGE_LINES), strict=True),
        ranges=ranges(figures, roles),
        differences=difference_groups(figures),
        matrix=matrix(report, roles),
        speeds=speed_bars(figures, roles),
        loss=loss_plot(report["loss"]),
        parity=parity_lines(figures),
        script=SCRIPT,
        script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
    )


def main_figure(figures: Mapping[str, Figure]) -> str:
    """The figure that the page leads with: accuracy with labels, exact match without."""
    return next((name for name in SHARES if any(f"{role}.{name}" in figures for role in ROLES)), "perplexity")


def summary(report: Mapping[str, Any], figures: Mapping[str, Figure], roles: Sequence[str]) -> Words:
    """What was found, in one or two sentences."""
    name = main_figure(figures)
    best = "tuned" if "tuned" in roles else roles[-1]
    score = figures.get(f"{best}.{name}")
    if score is None or name == "perplexity":
        return (f"Measured on {report['rows']} test questions.", f"共评估 {report['rows']} 道测试题。")
    who = {
        "base": ("The base model", "基座模型"),
        "tuned": ("The tuned model", "微调后的模型"),
        "exported": ("The exported model", "导出后的模型"),
    }
    english = f"{who[best][0]} answers {_percent(score)} of {report['rows']} unseen questions correctly"
    chinese = f"{who[best][1]}在 {report['rows']} 道未见过的问题上答对 {_percent(score)}"
    base = figures.get(f"base.{name}") if best != "base" else None
    if base is not None:
        english += f"; the model it started from {_percent(base)}"
        chinese += f"；原始模型为 {_percent(base)}"
        limited = figures.get(f"base.constrained_{name}")
        if limited is not None:
            english += f", or {_percent(limited)} when it may only choose among the labels"
            chinese += f"，若只允许在标签中选择则为 {_percent(limited)}"
    exported = figures.get(f"exported.{name}") if best == "tuned" else None
    if exported is not None:
        weight = figures.get("exported.bytes")
        english += f". Exported{f' to {size(weight.value)}' if weight else ''} it answers {_percent(exported)}"
        chinese += f"。导出后{f'（{size(weight.value)}）' if weight else ''}为 {_percent(exported)}"
    return f"{english}.", f"{chinese}。"


def tiles(figures: Mapping[str, Figure], roles: Sequence[str]) -> list[tuple[Words, str, str]]:
    """The few numbers at the top: title, number, what stands below it."""
    name = main_figure(figures)
    shown = "tuned" if "tuned" in roles else roles[-1]
    made: list[tuple[Words, str, str]] = []
    if (score := figures.get(f"{shown}.{name}")) is not None:
        number, _, interval = cell(name, score).partition(" ")
        made.append((_joined(name, shown), number, interval.strip("()")))
    for pair, words in (
        ("tuned_vs_base", ("Gain over the base model", "相对基座模型的提升")),
        ("exported_vs_tuned", ("Change by exporting", "导出带来的变化")),
    ):
        if name in SHARES and (change := figures.get(f"{pair}.{name}")) is not None:
            number, _, interval = points(change).partition(" ")
            made.append((words, f"{number} pp", interval.strip("()")))
    last = roles[-1]
    for line in ("bytes", "tokens_per_s", "latency_p50_ms"):
        if (found := figures.get(f"{last}.{line}")) is not None:
            made.append((_joined(line, last), cell(line, found), "" if found.n is None else f"n={found.n}"))
    return made


def ranges(figures: Mapping[str, Figure], roles: Sequence[str]) -> list[dict[str, Any]]:
    """Shares with their intervals, by figure, for the interval plot (positions in percent)."""
    groups = []
    for name in SHARES:
        bars = [_bar(role, name, figures[f"{role}.{name}"]) for role in roles if f"{role}.{name}" in figures]
        if bars:
            groups.append({"title": TITLES[name], "bars": bars})
    return groups


def _bar(role: str, name: str, figure: Figure) -> dict[str, Any]:
    low = figure.value if figure.low is None else figure.low
    high = figure.value if figure.high is None else figure.high
    left, right = round(100 * low, 2), round(100 * high, 2)
    text = cell(name, figure)
    return {
        "role": role,
        "low": left,
        "width": round(right - left, 2),
        "at": round(100 * figure.value, 2),
        "text": text,
    }


def difference_groups(figures: Mapping[str, Figure]) -> list[dict[str, Any]]:
    """Paired differences of shares, by pair of models; each pair has its own symmetrical axis, zero at 50 %."""
    groups = []
    for one, other in DIFFERENCES:
        found = [
            (name, figures[f"{one}_vs_{other}.{name}"]) for name in SHARES if f"{one}_vs_{other}.{name}" in figures
        ]
        reach = max((abs(end) for _, figure in found for end in _ends(figure)), default=0.0) or 0.01
        if found:
            words = (f"{TITLES[one][0]} − {TITLES[other][0]}", f"{TITLES[one][1]} − {TITLES[other][1]}")
            bars = [_difference(name, figure, reach) for name, figure in found]
            groups.append({"title": words, "bars": bars, "reach": f"{100 * reach:.1f}"})
    return groups


def _difference(name: str, figure: Figure, reach: float) -> dict[str, Any]:
    low, high = _ends(figure)
    return {
        "title": TITLES[name],
        "low": round(50 + 50 * low / reach, 2),
        "width": round(50 * (high - low) / reach, 2),
        "at": round(50 + 50 * figure.value / reach, 2),
        "text": points(figure),
        "sure": "better" if low > 0 else "worse" if high < 0 else "open",
    }


def _ends(figure: Figure) -> tuple[float, float]:
    low = figure.value if figure.low is None else figure.low
    return low, figure.value if figure.high is None else figure.high


def matrix(report: Mapping[str, Any], roles: Sequence[str]) -> dict[str, Any] | None:
    """The confusion matrix of the model that matters, its cells shaded by their share of the row."""
    shown = "tuned" if "tuned" in roles else roles[-1]
    found = report["confusion"][shown]
    if found is None:
        return None
    labels, counts = found["labels"], found["counts"]
    shaded = [[(n, round(n / max(1, sum(row)), 3)) for n in row] for row in counts]
    pairs = [
        (count, gold, given)
        for gold, row in zip(labels, counts, strict=True)
        for given, count in zip([*labels, ""], row, strict=True)
        if given != gold and count
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return {
        "role": shown,
        "labels": labels,
        "rows": list(zip(labels, shaded, strict=True)),
        "pairs": pairs[:12],
        "readable": len(labels) <= MATRIX_LIMIT,
        "any_invalid": any(row[-1] for row in counts),
    }


def speed_bars(figures: Mapping[str, Figure], roles: Sequence[str]) -> list[dict[str, Any]]:
    """Latency, time to first token and tokens per second, each on its own axis from zero."""
    groups = []
    for name in SPEED_LINES:
        found = [(role, figures[f"{role}.{name}"]) for role in roles if f"{role}.{name}" in figures]
        top = max((figure.value for _, figure in found), default=0.0)
        bars = [
            {"role": role, "width": round(100 * figure.value / top, 2), "text": cell(name, figure), "n": figure.n}
            for role, figure in found
            if top > 0
        ]
        if bars:
            groups.append({"title": TITLES[name], "bars": bars, "less": name.endswith("_ms")})
    return groups


def loss_plot(pairs: Sequence[Sequence[float]]) -> dict[str, Any] | None:
    """The training loss as a line in a box of 360 by 200, loss axis from zero; None with fewer than two points."""
    if len(pairs) < 2:
        return None
    top = max(loss for _, loss in pairs) or 1.0
    first, last = pairs[0][0], pairs[-1][0]
    span = (last - first) or 1
    spots = [(round(360 * (step - first) / span, 1), round(200 - 190 * loss / top, 1)) for step, loss in pairs]
    return {
        "points": " ".join(f"{x},{y}" for x, y in spots),
        "area": f"0,200 {' '.join(f'{x},{y}' for x, y in spots)} 360,200",
        "end": spots[-1],
        "top": f"{top:.2f}",
        "half": f"{top / 2:.2f}",
        "first": f"{first:g}",
        "last": f"{last:g}",
        "last_loss": f"{pairs[-1][1]:.3f}",
    }


def parity_lines(figures: Mapping[str, Figure]) -> list[tuple[Words, str, str]]:
    """Title, value and count of every parity figure."""
    lines = []
    for key, figure in figures.items():
        if key.startswith("parity."):
            name = key.removeprefix("parity.")
            words = PARITY_TITLES.get(name, (name.replace("_", " "), name.replace("_", " ")))
            lines.append((words, f"{figure.value:.4g} {figure.unit}".strip(), str(figure.n or "")))
    return lines


def _joined(name: str, role: str) -> Words:
    return f"{TITLES[name][0]}, {TITLES[role][0]}", f"{TITLES[name][1]} · {TITLES[role][1]}"


def _percent(figure: Figure) -> str:
    return f"{100 * figure.value:.1f}%"
