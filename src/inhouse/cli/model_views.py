"""How a model's header looks on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inhouse.cli.table import size, table
from inhouse.core.messages import text

if TYPE_CHECKING:
    from rich.console import Console

    from inhouse.api.models import Model
    from inhouse.core.model import ModelFacts
    from inhouse.select.attention import Attention

Rows = list[tuple[str, str]]
NONE = "–"


def model(result: Model, console: Console) -> None:
    """A fetched model: header, how it attends, terms, where it lies."""
    rows = _header(result.facts) + (_attention(result.attention) if result.attention else [])
    rows += [("licence", f"{lic.spdx} ({lic.subject}, {lic.source})") for lic in result.licences]
    rows += [("id", result.id), ("path", str(result.path))]
    named = [(text(f"cell.model.{name}"), value) for name, value in rows]
    table(console, text("cell.fact"), text("cell.value"), rows=named)


def _header(facts: ModelFacts) -> Rows:
    """What every model says of itself; what it does not say is left out."""
    rows: Rows = [("name", facts.name), ("format", facts.format), ("architecture", facts.architecture)]
    if facts.parameters is not None:
        rows.append(("parameters", f"{facts.parameters:,}"))
    if facts.active_parameters is not None and facts.active_parameters != facts.parameters:
        rows.append(("active", f"{facts.active_parameters:,}"))
    if facts.layers is not None:
        rows.append(("layers", f"{facts.layers}"))
    if facts.tensor_types:
        rows.append(("tensor_types", ", ".join(f"{kind} × {count}" for kind, count in facts.tensor_types.items())))
    return [*rows, ("bytes", size(facts.bytes))] if facts.bytes else rows


def _attention(found: Attention) -> Rows:
    """Heads, cache, window and positions."""
    kind = "shared" if found.kv_heads < found.heads else "own"
    heads = text(f"cell.model.heads_{kind}", heads=found.heads, kv_heads=found.kv_heads,
                 group=found.heads_per_kv_head, size=found.head_size)  # fmt: skip
    rows: Rows = [("attention", heads)]
    if found.kv_bytes_per_token is not None:
        rows.append(("kv_cache", _cache(found)))
    if found.sliding_window is not None:
        told = text("cell.model.windowed", window=f"{found.sliding_window:,}", some=found.sliding_layers,
                    layers=found.layers)  # fmt: skip
        rows.append(("window", told))
    else:
        rows.append(("window", text("cell.model.no_window")))
    rows.append(("positions", _positions(found)))
    if found.context_length is not None:
        rows.append(("context", text("cell.model.tokens", count=f"{found.context_length:,}")))
    return rows


def _cache(found: Attention) -> str:
    each = f"{(found.kv_bytes_per_token or 0) / 1024:,.4g} KiB"
    if found.kv_bytes_at_context is None:
        return text("cell.model.cache", each=each)
    mib = found.kv_bytes_at_context / 2**20
    whole = f"{mib:,.0f} MiB" if mib >= 10 else f"{mib:.2g} MiB"
    return text("cell.model.cache_whole", each=each, whole=whole, length=f"{found.context_length:,}")


def _positions(found: Attention) -> str:
    if found.positions is None:
        return text("cell.model.not_rotary")
    told = [text("cell.model.rotary")]
    if found.rope_theta is not None:
        told.append(text("cell.model.theta", theta=f"{found.rope_theta:,.0f}"))
    if found.positions == "default":
        told.append(text("cell.model.not_scaled"))
    else:
        times = f" × {found.rope_factor:g}" if found.rope_factor else ""
        native = NONE if found.native_context is None else f"{found.native_context:,}"
        told.append(text("cell.model.scaled", kind=found.positions, times=times, native=native))
    return text("cell.model.join").join(told)
