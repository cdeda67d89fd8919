"""Pictures of long texts as SVG: perplexity by position, and where numbers were found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from inhouse.core.gate import Figure
from inhouse.evaluate.long_context.result import Group, LongContext

WIDTH, HEIGHT, MARGIN, KEY = 860, 380, 60, 190
COLOURS = ("#2f6db3", "#d08a1d", "#4f9a5b", "#c9503c", "#7a5ba8", "#3b9aa3", "#8b6d4b", "#b0568f", "#5f6b7a")
INK, FAINT, GOOD, WEAK, BAD = "#22272e", "#8b949e", "#4f9a5b", "#d9b44a", "#c9503c"
CELL, NAME = 46, 190


def draw(result: LongContext) -> dict[str, str]:
    """Every picture that there are figures for, by file name."""
    measured = [group for group in result.groups if group.curve]
    longest = max((group.length for group in measured), default=0)
    shown = [group for group in measured if group.length == longest]
    found = {"curve.svg": _curve(shown, result.native)} if shown else {}
    if any(group.needles for group in measured):
        found["needles.svg"] = _needles([group for group in measured if group.needles])
    return found


def _curve(groups: Sequence[Group], native: int) -> str:
    """Perplexity (log axis) over the place in the text, one line a strategy, with its 95 % band."""
    values = [end for group in groups for point in group.curve for end in _ends(point.perplexity)]
    low, high = math.log(max(min(values), 1e-9)), math.log(max(values))
    span = (high - low) or 1.0
    length = groups[0].length

    def x(place: float) -> float:
        return MARGIN + (WIDTH - MARGIN - KEY) * place / length

    def y(value: float) -> float:
        return HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (math.log(max(value, 1e-9)) - low) / span

    lines = []
    if native < length:
        lines.append(f'<line x1="{x(native):.1f}" x2="{x(native):.1f}" y1="{MARGIN}" y2="{HEIGHT - MARGIN}" '
                     f'stroke="{FAINT}" stroke-dasharray="4 4"/>')  # fmt: skip
    for number, group in enumerate(groups):
        colour = COLOURS[number % len(COLOURS)]
        middles = [(x((point.start + point.stop) / 2), point.perplexity) for point in group.curve]
        over = [f"{at:.1f},{y(_ends(figure)[1]):.1f}" for at, figure in middles]
        under = [f"{at:.1f},{y(_ends(figure)[0]):.1f}" for at, figure in reversed(middles)]
        spots = " ".join(f"{at:.1f},{y(figure.value):.1f}" for at, figure in middles)
        lines.append(f'<polygon points="{" ".join([*over, *under])}" fill="{colour}" opacity="0.12"/>')
        lines.append(f'<polyline points="{spots}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines.append(_text(WIDTH - KEY + 16, MARGIN + 20 * number, group.strategy, colour))
    for value in (math.exp(low), math.exp((low + high) / 2), math.exp(high)):
        lines.append(_text(8, y(value) + 4, f"{value:.3g}", FAINT))
    for share in (0, 0.5, 1):
        lines.append(_text(x(length * share) - 12, HEIGHT - MARGIN + 20, f"{length * share:,.0f}", FAINT))
    return _svg("Perplexity by position · 各位置的困惑度", lines, HEIGHT)


def _ends(found: Figure) -> tuple[float, float]:
    return (found.value if found.low is None else found.low, found.value if found.high is None else found.high)


def _needles(groups: Sequence[Group]) -> str:
    """A row for each strategy and length, a cell for each depth: green written, yellow likeliest, red neither."""
    depths = sorted({one.depth for group in groups for one in group.needles if one.depth is not None})
    lines = [_text(NAME + MARGIN + CELL * at, 60, f"{depth:g} %", FAINT) for at, depth in enumerate(depths)]
    for row, group in enumerate(groups):
        top = 72 + 22 * row
        lines.append(_text(16, top + 14, f"{group.strategy} · {group.length:,}", INK))
        for at, depth in enumerate(depths):
            own = [one for one in group.needles if one.depth == depth]
            if own:
                share = sum(one.exact for one in own) / len(own)
                likely = any(one.likeliest for one in own)
                colour = GOOD if share >= 0.5 else WEAK if likely or share else BAD
                left = NAME + MARGIN + CELL * at
                lines.append(f'<rect x="{left}" y="{top}" width="{CELL - 3}" height="19" rx="3" fill="{colour}"/>')
    return _svg("Numbers found by depth · 各深度找回的数字", lines, 90 + 22 * len(groups))


def _text(x: float, y: float, said: str, colour: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="13" fill="{colour}">{escape(said)}</text>'


def _svg(title: str, lines: Sequence[str], height: int) -> str:
    family = "system-ui, 'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', sans-serif"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="{family}">'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
    )
    return "\n".join([head, _text(16, 32, title, INK), *lines, "</svg>"]) + "\n"
