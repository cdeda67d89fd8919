"""Hide part of a value and keep its form, so that people can still tell values apart by eye."""

from __future__ import annotations

from inhouse.guard.spans import PiiType

# Letters and digits that stay visible: at the head and at the tail.
SHOWN: dict[PiiType, tuple[int, int]] = {
    "phone": (3, 4),
    "cn_resident_id": (3, 2),
    "bank_card": (0, 4),
    "passport": (1, 2),
    "plate": (2, 1),
    "wechat": (1, 1),
    "qq": (1, 1),
    "address": (3, 0),
}


def partial(value: str, type: PiiType) -> str:
    """The value with most of its letters and digits as '*'; separators stay."""
    if type == "email":
        local, _, domain = value.partition("@")
        return f"{local[0]}***@{domain}"
    if type in ("ipv4", "ipv6"):
        mark = "." if type == "ipv4" else ":"
        return mark.join([*value.split(mark)[:2], "*", "*"])
    if type == "name":
        return " ".join(word[0] + "*" * (len(word) - 1) for word in value.split(" ")) if len(value) > 1 else "*"
    head, tail = SHOWN[type]
    places = [n for n, c in enumerate(value) if c.isalnum()]
    hidden = set(places[head : len(places) - tail])
    return "".join("*" if n in hidden else c for n, c in enumerate(value))
