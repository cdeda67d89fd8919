"""How keys look on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from inhouse.cli.table import table
from inhouse.core.messages import text

if TYPE_CHECKING:
    from rich.console import Console

    from inhouse.api.keys import KeyLine, Keys, NewKey


def keys(result: Keys, console: Console) -> None:
    """Keys without their secrets."""
    if not result.keys:
        console.print(text("cell.no_keys"))
        return
    columns = ("name", "key", "scopes", "models", "limits", "state")
    table(console, *(text(f"cell.{c}") for c in columns), rows=[_row(k) for k in result.keys])


def new_key(result: NewKey, console: Console) -> None:
    """The token, once."""
    console.print(text("cell.new_key", name=result.name))
    print(result.token)


def _row(key: KeyLine) -> tuple[str, ...]:
    """One key; its limits as `60 req/min`."""
    limits = {
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "tokens_per_day": key.tokens_per_day,
    }
    shown = ", ".join(text(f"cell.{name}", count=f"{count:,}") for name, count in limits.items() if count is not None)
    if key.tokens_per_day is not None:
        shown += f" ({text('cell.key_used', count=f'{key.tokens_today:,}')})"
    models = ", ".join(key.models) or text("cell.all_models")
    return key.name, f"{key.prefix}…", ", ".join(key.scopes), models, shown, _state(key)


def _state(key: KeyLine) -> str:
    if key.revoked is not None:
        return text("cell.key_revoked", moment=key.revoked[:10])
    if key.expired and key.expires is not None:
        return text("cell.key_expired", moment=key.expires[:16])
    ends = {"cell.key_until": key.expires, "cell.key_old_until": key.old_token_until}
    return ", ".join(text(name, moment=moment[:16]) for name, moment in ends.items() if moment is not None)


VIEWS: dict[str, Callable[[Any, Console], None]] = {"keys": keys, "new_key": new_key}
