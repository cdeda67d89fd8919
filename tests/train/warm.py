"""An interpreter that has the libraries loaded already: each command given to it runs in a fork of one process.

`warm.py FD` serves the socket that it inherits until its standard input closes. `interpreter(folder)` makes an
executable that takes an interpreter's arguments (`-u`, `-m MODULE …`, `SCRIPT …`) and hands them over with its
environment, folder and streams; it ends as the command ends, and the command is killed when it is killed. The server
computes nothing, so that no thread is lost in a fork: what comes out is what a new interpreter makes, without its
seconds of importing.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    "polars", "torch", "torch.distributed.launcher.api", "peft",
    "inhouse.engines.torch_chat", "inhouse.engines.transformers",
)  # fmt: skip
OURS = ("inhouse.api.run", "inhouse.train.stage", "inhouse.train.loop", "inhouse.train.result")
CLIENT = """#!{python} -SEs
import json, os, socket, sys
if sys.argv[1] == "-P":  # a child with limits of its own: the libraries loaded here would be beyond them
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
    server.connect({path!r})
    told = {{"argv": sys.argv, "env": dict(os.environ), "folder": os.getcwd()}}
    socket.send_fds(server, [json.dumps(told).encode()], [0, 1, 2])
    sys.exit(int(server.recv(16) or b"1"))
"""


def interpreter(folder: Path) -> Path:
    """Write the executable that stands for an interpreter; its server listens at `socket` beside it."""
    file = folder / "python"
    file.write_text(CLIENT.format(python=sys.executable, path=str(folder / "socket")), encoding="utf-8")
    file.chmod(0o755)
    return file


def load() -> None:
    """Import all that a training needs, and compute nothing."""
    for name in (*LIBRARIES, *OURS):
        importlib.import_module(name)
    transformers = importlib.import_module("transformers")
    for name in ("Trainer", "EarlyStoppingCallback", "AutoModelForCausalLM", "LlamaForCausalLM"):
        getattr(transformers, name)  # loaded on first use


def serve(listener: socket.socket) -> None:
    """Fork once per command, until standard input closes."""
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            look_after(connection)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def look_after(connection: socket.socket) -> NoReturn:
    """Run the command in a fork and tell its end; kill it when nobody waits for it any more."""
    data, streams, _, _ = socket.recv_fds(connection, 1 << 18, 3)
    child = os.fork()
    if child == 0:
        connection.close()
        become(json.loads(data), streams)
    for stream in streams:
        os.close(stream)
    ended = os.pidfd_open(child)
    if connection in select.select([connection, ended], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        connection.send(str(code if code >= 0 else 128 - code).encode())
    os._exit(0)


def become(told: dict[str, Any], streams: list[int]) -> NoReturn:
    """Take over the command's streams, folder, environment and arguments, run it, and end as it ends."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(told["folder"])
    os.environ.clear()
    os.environ.update(told["env"])
    sys.executable, *words = told["argv"]
    while words[0] == "-u":
        words.pop(0)
    if module := words[0] == "-m":
        words.pop(0)
    sys.argv = words
    sys.path[0] = told["folder"] if module else str(Path(words[0]).parent)
    if module:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")
    sys.exit(0)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as listening:
        load()
        gc.freeze()  # what is never looked at again stays shared between the forks
        serve(listening)
