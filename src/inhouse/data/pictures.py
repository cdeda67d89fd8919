"""Small pictures of a dataset as SVG: how long rows are, labels, languages, and what each step left."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any
from xml.sax.saxutils import escape

from inhouse.core.plugins import operators

WIDTH = 860
MARGIN = 24
TITLE_Y, TOP = 32, 64
LINE = 26  # height of one bar with its space
FONT = 13
LABEL_WIDTH = 300  # pixels a label may take; a longer one is cut
MOST_LABELS = 20
COLOURS = {"train": "#2f6db3", "valid": "#d08a1d", "test": "#4f9a5b"}
BAR, LOST, INK, FAINT = "#2f6db3", "#c9503c", "#22272e", "#8b949e"
FAMILY = "system-ui, 'Segoe UI', 'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', sans-serif"
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
PLOT_HEIGHT = 110
LAST_ROOM = 60  # pixels that the last number of an axis needs


@dataclass(frozen=True)
class Bar:
    """One horizontal bar: what it is, its parts as (size, colour), and what is written behind it."""

    label: str
    parts: tuple[tuple[float, str], ...]
    note: str


def draw(facts: Mapping[str, Any]) -> dict[str, str]:
    """Every picture that dataset.json has the numbers for, by file name."""
    found = {
        "funnel.svg": funnel(facts),
        "lengths.svg": lengths(facts),
        "labels.svg": labels(facts),
        "languages.svg": languages(facts),
    }
    return {name: picture for name, picture in found.items() if picture}


def different(facts: Mapping[str, Any]) -> int:
    """Rows that are kept, the repeats of a mix not counted: read + made = kept + dropped + rejected."""
    gone = int(facts["dropped"]["total"]) + int(facts["rejected"]["total"])
    return int(facts["read"]) + int(facts.get("made", 0)) - gone


def funnel(facts: Mapping[str, Any]) -> str:
    """Rows read, made, left after each step, and written; repeats of the mix come last."""
    read = left = int(facts["read"])
    lines = [("read · 读取", left, 0)]
    for name, lost in _losses(facts):
        left -= lost
        lines.append((name, left, lost))
    written = sum(facts["rows"].values())
    if written != left:
        lines.append(("repeats · 重复", written, left - written))
    bars = [Bar(name, ((count, BAR), (max(lost, 0), LOST)), _note(count, lost)) for name, count, lost in lines]
    part = f" ({written / read:.1%})" if read and not facts.get("made") and written == left else ""  # else no share
    bars.append(Bar("kept · 保留", ((written, BAR),), f"{written:,}{part}"))
    return _bars("Rows left after each step · 各步骤后剩余的数据行", bars)


def _losses(facts: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """What reading and each step took away (less than 0: made); blank rows only where the build found some."""
    if rejected := int(facts["rejected"]["total"]):
        yield "usable · 可用", rejected
    steps, made = facts["dropped"]["steps"], int(facts.get("made", 0))
    own = {"shape": "blank · 空白", "mix": "mix · 配比"}
    first = next((n for n, step in enumerate(steps) if _makes_rows(step["step"])), 0)  # of those that make rows
    for number, step in enumerate(steps):
        if made and number == first:
            yield "made · 增强", -made
        lost = sum(step["reasons"].values())
        name = own.get(step["step"])
        if name is None:
            yield f"{number + 1}. {step['step']}", lost
        elif lost or step["step"] == "mix":
            yield name, lost


def _makes_rows(step: str) -> bool:
    known = operators("cleaner").get(step)
    return known is not None and getattr(known.module, "SHAPE", None) == "expand"


def _note(count: int, lost: int) -> str:
    return f"{count:,} ({-lost:+,})" if lost else f"{count:,}"


def labels(facts: Mapping[str, Any]) -> str:
    """Rows of every label, the parts behind each other; the commonest labels when there are many."""
    parts = [part for part, count in facts["rows"].items() if count]
    counts = {name: [facts["labels_per_part"][part][name] for part in parts] for name in facts["labels"]}
    if not counts:
        return ""
    order = sorted(counts, key=lambda name: (-sum(counts[name]), name))
    shown, rest = order[:MOST_LABELS], order[MOST_LABELS:]
    bars = [_label_bar(name, counts[name], parts) for name in shown]
    if rest:
        others = [sum(column) for column in zip(*(counts[name] for name in rest), strict=True)]
        bars.append(_label_bar(f"+{len(rest)} labels · 其余标签", others, parts))
    return _bars("Rows of each label · 各标签的数据行", bars, parts)


def _label_bar(name: str, counts: Sequence[int], parts: Sequence[str]) -> Bar:
    sizes = tuple((float(count), COLOURS[part]) for count, part in zip(counts, parts, strict=True))
    return Bar(name, sizes, " + ".join(f"{count:,}" for count in counts))


def languages(facts: Mapping[str, Any]) -> str:
    """Rows of each language where a step found it, else the share of each script."""
    found = facts.get("languages")
    if found:
        total = sum(found.values())
        bars = [Bar(name, ((count, BAR),), f"{count:,}  {count / total:.1%}") for name, count in _largest(found)]
        return _bars("Rows of each language · 各语言的数据行", bars)
    shares = facts["scripts"]
    if not shares:
        return ""
    bars = [Bar(name, ((share, BAR),), f"{share:.1%}") for name, share in _largest(shares)]
    return _bars("Share of each script among letters · 各文字在字符中的比例", bars)


def _largest(counts: Mapping[str, float]) -> list[tuple[str, float]]:
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = order[MOST_LABELS:]
    return order[:MOST_LABELS] + ([("other · 其他", sum(count for _, count in rest))] if rest else [])


def lengths(facts: Mapping[str, Any]) -> str:
    """How many characters the rows have, one plot for each part; the scale is logarithmic."""
    found = facts.get("histogram")
    parts = [part for part in COLOURS if found and sum(found["parts"].get(part, ()))]
    if not parts:
        return ""
    drawn = [_plot(found, part, TOP + i * (PLOT_HEIGHT + 40)) for i, part in enumerate(parts)]
    height = TOP + len(parts) * (PLOT_HEIGHT + 40) + 16
    return _svg("Characters per row · 每行字符数", height, "".join(drawn))


def _plot(found: Any, part: str, top: int) -> str:
    edges, counts = found["edges"], found["parts"][part]
    total, highest = sum(counts), max(counts)
    left, right, base = MARGIN + 70, WIDTH - MARGIN, top + PLOT_HEIGHT
    step = (right - left) / len(counts)
    drawn = [
        _text(MARGIN, top + 14, part, COLOURS[part], "start", bold=True),
        _text(MARGIN, top + 32, f"{total:,}", FAINT),
    ]
    for place, count in enumerate(counts):
        tall = (PLOT_HEIGHT - 18) * count / highest
        x = left + place * step
        drawn.append(_rect(x + 1, base - tall, max(step - 2, 0.5), tall, COLOURS[part]))
        if place == counts.index(highest):
            drawn.append(_text(x + step / 2, base - tall - 5, f"{count / total:.0%}", FAINT, "middle"))
        if _is_round(edges[place]):
            drawn.append(_text(x, base + 16, _short(edges[place]), FAINT, "middle"))
    if not any(_is_round(edge) for edge in edges[-1 - ceil(LAST_ROOM / step) : -1]):  # or the two would touch
        drawn.append(_text(right, base + 16, _short(edges[-1]), FAINT, "end"))
    drawn.append(f'<line x1="{left}" y1="{base}" x2="{right}" y2="{base}" stroke="{FAINT}"/>\n')
    return "".join(drawn)


def _is_round(edge: int) -> bool:
    """Whether an edge is written below the axis: 0, 1, 10, 100, and 3, 30, 300."""
    return str(edge).rstrip("0") in ("", "1", "3")


def _short(number: int) -> str:
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= size and number % (size // 10) == 0:
            return f"{number / size:g}{unit}"
    return str(number)


def _bars(title: str, bars: Sequence[Bar], parts: Sequence[str] = ()) -> str:
    top = TOP + (22 if len(parts) > 1 else 0)
    fitted = [_fit(bar.label, LABEL_WIDTH) for bar in bars]
    left = MARGIN + max(_width(label) for label in fitted) + 12
    room = WIDTH - MARGIN - left - max(_width(bar.note) for bar in bars) - 10
    most = max((sum(size for size, _ in bar.parts) for bar in bars), default=0) or 1
    drawn = [_legend(parts)] if len(parts) > 1 else []
    for place, (bar, label) in enumerate(zip(bars, fitted, strict=True)):
        y = top + place * LINE
        drawn.append(_text(left - 12, y + 13, label, INK, "end"))
        x = float(left)
        for size, colour in bar.parts:
            wide = room * size / most
            drawn.append(_rect(x, y, wide, LINE - 8, colour))
            x += wide
        drawn.append(_text(x + 8, y + 13, bar.note, FAINT))
    return _svg(title, top + len(bars) * LINE + 16, "".join(drawn))


def _legend(parts: Sequence[str]) -> str:
    drawn, x = [], float(MARGIN)
    for part in parts:
        drawn.append(_rect(x, TOP - 14, 12, 12, COLOURS[part]) + _text(x + 18, TOP - 3, part, INK))
        x += 40 + _width(part)
    return "".join(drawn)


def _svg(title: str, height: int, body: str) -> str:
    """The whole file. The ground is white, so that it can be read on a dark page."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" font-family="{FAMILY}" font-size="{FONT}">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n'
        f"{_text(MARGIN, TITLE_Y, title, INK, 'start', bold=True)}{body}</svg>\n"
    )


def _text(x: float, y: float, words: str, colour: str, anchor: str = "start", *, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    shown = escape(NOT_XML.sub("\ufffd", words))
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}"{weight}>{shown}</text>\n'


def _rect(x: float, y: float, wide: float, tall: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}" fill="{colour}"/>\n'


def _width(words: str) -> int:
    """About how many pixels a text takes: a Chinese character is as wide as it is high."""
    return round(sum(_char_width(c) for c in words))


def _char_width(char: str) -> float:
    if unicodedata.east_asian_width(char) in "WF":
        return float(FONT)
    if unicodedata.combining(char):
        return 0.0
    return FONT * (0.78 if char.isupper() or char in "mw%@" else 0.6)


def _fit(words: str, pixels: int) -> str:
    """A text on one line, its end cut where it is wider than there is room."""
    words = " ".join(words.split()) or "∅"
    if _width(words) <= pixels:
        return words
    used, kept = float(FONT), 0
    for char in words:
        used += _char_width(char)
        if used > pixels:
            break
        kept += 1
    return f"{words[:kept].rstrip()}…"
