"""Parts of a message: texts are joined, pictures, sounds and files are refused. Nothing is ever fetched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inhouse.core.messages import text
from inhouse.serve.errors import ApiError, invalid, unsupported

TEXTS = {"text", "input_text", "output_text", "summary_text"}
MEDIA = {"image_url", "image", "input_image", "input_audio", "audio", "video_url", "file", "input_file", "document"}
PARTS = 2000


def join_parts(content: Any, place: str) -> str:
    """The text of a message's content: a text, or a list of text parts (a refusal counts as text), one line each.

    `place` names the field in errors: messages.0.content. Raises ApiError 400 for pictures, sounds and files, whatever
    their address is (a `data:` URL too): no model here sees them, and no address is looked at.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or len(content) > PARTS:
        raise invalid(text("serve.content_kind", most=PARTS), place)
    return "\n".join(_part(part, f"{place}.{index}") for index, part in enumerate(content))


def _part(part: Any, place: str) -> str:
    if isinstance(part, str):  # Anthropic's and older clients' lists of texts
        return part
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise invalid(text("serve.part_kind"), place)
    kind = part["type"]
    if kind in MEDIA or kind not in TEXTS | {"refusal"}:
        if kind in MEDIA:
            raise ApiError(400, "unsupported_content", text("serve.no_media", kind=kind), f"{place}.type")
        raise unsupported(f"{place}.type")
    words = part.get("refusal" if kind == "refusal" else "text")
    if not isinstance(words, str):
        raise invalid(text("serve.part_kind"), place)
    return words
