"""Names of the divisions of China, from the table beside this file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

LONGEST = 15
PROVINCE, PREFECTURE, COUNTY = 3, 2, 1
# First two digits of resident ids: provinces, and 91 for permits of foreigners (GB/T 2260, GA/T 704).
ID_PROVINCES = frozenset(
    (*range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55), *range(61, 66), 71, 81, 82, 83, 91)
)


@cache
def levels() -> dict[str, int]:
    """Each name, with and without its suffix where that stays clear, and its level (province 3 to county 1)."""
    found: dict[str, int] = {}
    rank = {"province": PROVINCE, "prefecture": PREFECTURE, "county": COUNTY}
    for line in reversed((Path(__file__).parent / "divisions.txt").read_text(encoding="utf-8").splitlines()[1:]):
        level, *names = line.split(" ")
        for name in names:
            found[name] = rank[level]
            if level != "county":
                found[_short(name)] = rank[level]
    return found


def _short(name: str) -> str:
    for region in ("内蒙古", "广西", "西藏", "宁夏", "新疆", "香港", "澳门"):
        if name.startswith(region) and name.endswith(("自治区", "行政区")):
            return region
    return name[:-1] if name[-1] in "省市" and len(name) >= 3 else name


@cache
def _beginnings() -> frozenset[str]:
    return frozenset(name[:2] for name in levels())


def at(text: str, start: int) -> tuple[int, int]:
    """The longest division name at `start`: its length (0 for none) and its level."""
    if text[start : start + 2] not in _beginnings():
        return 0, 0
    known = levels()
    for size in range(min(LONGEST, len(text) - start), 1, -1):
        if level := known.get(text[start : start + size]):
            return size, level
    return 0, 0
