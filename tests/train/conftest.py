"""An interpreter with the libraries loaded, for every test that trains in processes of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What stands for an interpreter in a command line and starts at once; see tests/train/warm.py."""
    folder = tmp_path_factory.mktemp("warm")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "CUDA_VISIBLE_DEVICES": ""}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen(16)
        number = listener.fileno()
        words = [sys.executable, str(Path(warm.__file__)), str(number)]
        server = subprocess.Popen(words, stdin=subprocess.PIPE, env=env, pass_fds=[number])
    with server:
        yield warm.interpreter(folder)
        assert server.stdin is not None
        server.stdin.close()
        assert server.wait(timeout=60) == 0
