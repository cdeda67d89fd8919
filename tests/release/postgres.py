"""A real PostgreSQL server for tests, where its programs are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDERS = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), Path("/usr/local/bin"), Path("/usr/bin")]
# Nothing of a test has to survive a power cut; one socket in a folder of ours, no port.
OPTIONS = (
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "listen_addresses=",
    "log_min_messages=panic",
    "max_connections=60",
)


def program(name: str) -> str | None:
    """Where a program of PostgreSQL is; Debian keeps most of them out of PATH."""
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *map(str, FOLDERS)]))


def installed() -> bool:
    return program("initdb") is not None and program("postgres") is not None


def unprivileged() -> dict[str, Any]:
    """Arguments for a process that is not root: PostgreSQL refuses to be."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise RuntimeError("no user to run PostgreSQL as")


@contextmanager
def server() -> Iterator[str]:
    """Start a server of its own; yields the URL of its database `postgres`, and removes everything at the end."""
    who = unprivileged()
    # Not below pytest's folder, into which only its owner may look; short, as a socket's name may not be long.
    folder = Path(tempfile.mkdtemp(prefix="inhouse-pg-"))
    if who:
        os.chown(folder, who["user"], who["group"])
    data = folder / "data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": folder, **who}
    make = [program("initdb"), "-D", str(data), "-U", "inhouse", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"]
    subprocess.run(make, check=True, **quiet)
    command = [program("postgres"), "-D", str(data), "-k", str(folder)]
    process = subprocess.Popen([*command, *(f"-c{option}" for option in OPTIONS)], **{**quiet, "stderr": None})
    try:
        wait_for(data / "postmaster.pid", process)
        yield f"postgresql://inhouse@/postgres?host={folder}"
    finally:
        process.send_signal(2)  # a fast shutdown: it does not wait for connections that are left open
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(note: Path, process: subprocess.Popen[Any]) -> None:
    """Until the server says in its note that it takes connections."""
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        if note.exists() and note.read_text().rstrip().endswith("ready"):
            return
        time.sleep(0.02)
    raise RuntimeError("PostgreSQL did not start")
