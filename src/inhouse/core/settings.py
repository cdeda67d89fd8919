"""What the environment says. The only place that reads environment variables."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

OPENAI = "https://api.openai.com/v1"
TRUE = {"1", "true", "yes", "on"}
HUGETLB = "glibc.malloc.hugetlb=1"
# Compiled matrix products that torch's libraries keep, one for each shape: as many as a layer needs, not 1,024 twice.
# Rows have many lengths: after 40 steps of a 26M model the products held half as much as all else.
FEW_PRODUCTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "1"}


@dataclass(frozen=True)
class Settings:
    """Defaults that a user sets once per machine; a command's flags override them."""

    workspace: Path  # INHOUSE_WORKSPACE, default ./.inhouse
    offline: bool  # INHOUSE_OFFLINE or HF_HUB_OFFLINE: open no socket
    language: str  # INHOUSE_LANG, else the locale
    openai_base_url: str | None  # upstream for `remote` models
    openai_api_key: str | None
    hf_endpoint: str | None  # HF_ENDPOINT: a mirror of the hub
    hf_token: str | None
    ms_endpoint: str  # MODELSCOPE_ENDPOINT
    database_url: str | None  # INHOUSE_DATABASE_URL: a PostgreSQL server that holds the registry of a team
    api_key: str | None  # INHOUSE_API_KEY: the key that `inhouse chat` sends
    pii_key: str | None  # INHOUSE_PII_KEY: the secret behind consistent replacements of personal data
    threads: int | None  # INHOUSE_THREADS: threads for training and engines, default all usable cores


def _flag(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() in TRUE


def _locale() -> str:
    for name in ("INHOUSE_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(name, "").strip():
            return value
    return "en"


def settings() -> Settings:
    """Read the environment now (cheap; not cached, so that a test or a face may change it)."""
    env = os.environ.get
    threads = env("INHOUSE_THREADS", "")
    return Settings(
        workspace=Path(env("INHOUSE_WORKSPACE") or ".inhouse"),
        offline=_flag("INHOUSE_OFFLINE") or _flag("HF_HUB_OFFLINE"),
        language=_locale(),
        openai_base_url=env("OPENAI_BASE_URL") or None,
        openai_api_key=env("OPENAI_API_KEY") or None,
        hf_endpoint=env("HF_ENDPOINT") or None,
        hf_token=env("HF_TOKEN") or None,
        ms_endpoint=env("MODELSCOPE_ENDPOINT") or "https://modelscope.cn",
        database_url=env("INHOUSE_DATABASE_URL") or None,
        api_key=env("INHOUSE_API_KEY") or None,
        pii_key=env("INHOUSE_PII_KEY") or None,
        threads=int(threads) if threads.isdigit() and int(threads) > 0 else None,
    )


def openai_headers(url: str) -> dict[str, str]:
    """The user's key as HTTP headers, only for the address that it was set for: OPENAI_BASE_URL, absent OpenAI's own.

    A project file, which others may have written, names addresses too, and must not send the key to them.
    """
    environment = settings()
    home = environment.openai_base_url or OPENAI
    if environment.openai_api_key and url.rstrip("/") == home.rstrip("/"):
        return {"Authorization": f"Bearer {environment.openai_api_key}"}
    return {}


def upstream_key(name: str) -> str | None:
    """The key for an endpoint that we serve from, in a variable made for it.

    Only names that begin so: a project file, which others may have written, must not send out any other secret.
    """
    if not name.startswith("INHOUSE_UPSTREAM_"):
        raise ValueError(name)
    return os.environ.get(name) or None


def cache_home() -> Path:
    """The user's folder for what can be made again: XDG_CACHE_HOME, absent ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it downloaded: HF_HUB_CACHE, absent `hub` in HF_HOME."""
    home = os.environ.get("HF_HOME") or cache_home() / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def usable_cores() -> int:
    """Cores this process may use (affinity respected), or INHOUSE_THREADS."""
    return settings().threads or len(own_cores())


def own_cores() -> list[int]:
    """The numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def chosen_waiting() -> bool:
    """Whether the environment says how OpenMP's threads wait."""
    return "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ


def spinning() -> bool:
    """Whether the environment lets OpenMP's threads spin while they wait, and does not say on which cores they run."""
    spins = os.environ.get("GOMP_SPINCOUNT", "0") != "0"
    return spins and not {"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY"} & os.environ.keys()


def leave_parallelism_to_processes() -> None:
    """Let polars use one thread in this process; call it before polars is imported."""
    os.environ["POLARS_MAX_THREADS"] = "1"


def child_environment(offline: bool) -> dict[str, str]:
    """The environment for a child process: this one, the language kept, hubs switched off when offline."""
    # What polars frees is free for others at once, not after half a second: a build takes a tenth less memory.
    env = {"_RJEM_MALLOC_CONF": "dirty_decay_ms:0,muzzy_decay_ms:1000", **FEW_PRODUCTS, **os.environ}
    if offline:
        env |= {"INHOUSE_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return env


def large_pages() -> dict[str, str]:
    """What a child's environment says so that glibc asks Linux for pages of 2 MB, where it has some to give.

    Reading all of a model's weights for each token, small pages are looked up too often.
    """
    said = os.environ.get("GLIBC_TUNABLES")
    return {"GLIBC_TUNABLES": f"{said}:{HUGETLB}" if said else HUGETLB}
