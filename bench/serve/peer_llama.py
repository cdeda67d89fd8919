"""The peer: llama.cpp's own HTTP listener out of the xllamacpp wheel, with nothing of ours around it.

python bench/serve/peer_llama.py MODEL.gguf --parallel 32 --context 1024 --threads 2 [--parent PID]
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
from typing import Any


def parameters(options: argparse.Namespace) -> Any:
    from xllamacpp import CommonParams

    found = CommonParams()
    found.model.path = options.model
    found.model_alias = {"mock"}
    found.n_parallel = options.parallel
    found.n_ctx = options.context * options.parallel
    found.cpuparams.n_threads = options.threads
    found.cpuparams_batch.n_threads = options.threads
    found.port = 0
    found.hostnames = ["127.0.0.1"]
    found.api_keys = ["sk-bench"]
    found.ui = False
    found.n_threads_http = 2 * options.parallel + 32
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--parallel", type=int, default=32)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parent", type=int)
    options = parser.parse_args()
    if options.parent:
        from inhouse.core.run import die_with_parent

        die_with_parent(options.parent)
    from xllamacpp import Server

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    server = Server(parameters(options))
    print(json.dumps({"ready": {"url": server.listening_address}}), flush=True)
    stop.wait()


if __name__ == "__main__":
    main()
