"""The gateway as a program: `python -m inhouse.serve`. `inhouse serve` becomes this process."""

# ruff: noqa: T201 (a program: what it prints is its answer)

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from inhouse.core.errors import InhouseError
from inhouse.core.messages import text, use_language
from inhouse.core.run import die_with_parent, process_mark
from inhouse.core.store import Store, write_durably
from inhouse.release.registry import Registry, open_registry
from inhouse.release.settings import ServeParams
from inhouse.serve.app import Started, first_key, serve


def main(words: list[str]) -> int:
    """Serve until told to stop; the exit code is the error's, 0 after a clean stop, 130 for Ctrl-C before that."""
    arguments = _parse(words)
    use_language(arguments.lang)
    attached = arguments.parent is not None
    if attached:
        die_with_parent(arguments.parent)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of every health check
    store = Store(arguments.workspace)
    try:
        registry = open_registry(store)
        params = _params(registry, arguments)
        if arguments.calibrate:
            _calibrate(registry, arguments.deployment[0], params)
        else:
            serve(registry, arguments.deployment, params, _tell(registry, attached))
    except InhouseError as error:
        if attached:
            print(json.dumps({"error": error.to_dict()}, ensure_ascii=False), flush=True)
        else:
            print(f"{text('cli.error')} {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # while the engine loads; later, the server takes the signal itself
        return 130
    return 0


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="inhouse serve")
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--deployment", required=True, action="append")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--lang", default="en")
    parser.add_argument("--parent", type=int, help="end with this parent process; print one JSON line when ready")
    parser.add_argument("--calibrate", action="store_true", help="compare the engines again, print JSON, and end")
    return parser.parse_args(words)


def _params(registry: Registry, arguments: argparse.Namespace) -> ServeParams:
    """The settings behind the first deployment's release, with the address of the command line."""
    release = registry.deployment(arguments.deployment[0]).release
    params = ServeParams.model_validate(registry.store.get(release.artifact).params.get("serve", {})).shared()
    given = {key: value for key in ("host", "port") if (value := getattr(arguments, key)) is not None}
    if arguments.parent is not None:  # only its parent talks to it, on this machine
        given["tls"] = None
    return params.model_copy(update=given)


def _calibrate(registry: Registry, name: str, params: ServeParams) -> None:
    from inhouse.serve.recalibrate import measure_again

    print(json.dumps({"releases": measure_again(registry, name, params)}), flush=True)


def _tell(registry: Registry, attached: bool) -> Callable[[Started], None]:
    def tell(started: Started) -> None:
        if attached:
            print(json.dumps({"url": started.url}), flush=True)
            return
        _note_address(registry.store, started)
        print(_greeting(started, first_key(registry)), flush=True)  # made only where somebody can read it

    return tell


def _note_address(store: Store, started: Started) -> None:
    """Leave the address for `inhouse chat`; the process's start mark tells a stale note."""
    pid = os.getpid()
    note = {"url": started.url, "pid": pid, "mark": process_mark(pid), "certificate": started.certificate}
    write_durably(store.root / "serve.json", json.dumps(note))


def _greeting(started: Started, made: str | None) -> str:
    """URL, model, the key when one was made now, and the next command."""
    key = made or "$INHOUSE_API_KEY"
    lines = [text("serve.greeting", url=started.url, deployment=started.deployment, release=started.release)]
    if made:
        lines.append(text("serve.first_key", key=made))
    lines.append(text("serve.try", url=started.url, key=key, deployment=started.deployment))
    if started.grpc is not None:
        lines.append(text("serve_faces.grpc", address=started.grpc))
    if started.public and started.certificate is None:
        lines.append(text("serve.public", url=started.url))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
