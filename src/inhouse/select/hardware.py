"""What this machine has: cores, memory, disk, processor features, graphics cards. Never imports torch."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

from inhouse.core.artifact import Frozen
from inhouse.core.settings import usable_cores

NVIDIA_TIMEOUT_S = 2.0
# Features that inference kernels use; a processor lists a hundred more.
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8", "f16c", "fma",
            "asimddp", "i8mm", "bf16", "sve")  # fmt: skip


class Gpu(Frozen):
    """One graphics card."""

    name: str
    memory_bytes: int
    free_bytes: int


class Hardware(Frozen):
    """The machine as this process sees it: affinity and container limits respected."""

    system: str
    processor: str
    cores: int
    memory_bytes: int
    free_memory_bytes: int
    free_disk_bytes: int
    features: tuple[str, ...] = ()
    gpus: tuple[Gpu, ...] = ()


def look(workspace: Path) -> Hardware:
    """Measure the machine; `workspace` chooses the disk."""
    import psutil

    memory = psutil.virtual_memory()
    limit = container_limit(Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    total = min(memory.total, limit or memory.total)
    name, features = processor(Path("/proc/cpuinfo"))
    return Hardware(
        system=f"{platform.system()} {platform.machine()}",
        processor=name,
        cores=usable_cores(),
        memory_bytes=total,
        free_memory_bytes=min(memory.available, total),
        free_disk_bytes=shutil.disk_usage(nearest(workspace)).free,
        features=features,
        gpus=graphics_cards(),
    )


def nearest(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    path = path.absolute()
    return path if path.is_dir() else nearest(path.parent)


def container_limit(*files: Path) -> int | None:
    """Memory that a container may use (cgroup v2, then v1); None without a limit."""
    for file in files:
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            return int(text)
    return None


def processor(cpuinfo: Path) -> tuple[str, tuple[str, ...]]:
    """Name and useful features of the processor, from /proc/cpuinfo where there is one."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return platform.processor() or platform.machine(), ()
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    present = set((fields.get("flags") or fields.get("Features") or "").split())
    return fields.get("model name") or platform.machine(), tuple(f for f in FEATURES if f in present)


def graphics_cards() -> tuple[Gpu, ...]:
    """NVIDIA cards as nvidia-smi lists them; none when it is absent, fails or hangs."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = [program, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(card for line in answer.stdout.splitlines() if (card := _card(line)))


def _card(line: str) -> Gpu | None:
    parts = [part.strip() for part in line.rsplit(",", 2)]
    if len(parts) != 3 or not parts[1].isdigit() or not parts[2].isdigit():
        return None  # "[N/A]": a card that shares the machine's memory
    return Gpu(name=parts[0], memory_bytes=int(parts[1]) * 2**20, free_bytes=int(parts[2]) * 2**20)
