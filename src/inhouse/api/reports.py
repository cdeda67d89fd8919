"""Reports: what was measured, as a table and as a page."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import Field

from inhouse.api.request import Request
from inhouse.api.run import TableLine, table_of
from inhouse.core.artifact import Artifact, Frozen
from inhouse.core.errors import UserError
from inhouse.core.gate import Figure
from inhouse.core.store import Store, disk_errors
from inhouse.evaluate.report import PAGE, load_figures


class ReportRequest(Request):
    """Which report."""

    artifact: str | None = Field(None, description="id of a report or its beginning; the newest when left out")
    html: Path | None = Field(None, description="write the self-contained page to this file")


class Report(Frozen):
    """A report's table, every figure behind it, and where its page lies."""

    id: str
    created: str
    table: tuple[TableLine, ...]
    figures: dict[str, Figure]
    page: Path


def show_report(request: ReportRequest) -> Report:
    """The figures of a report; with `html`, its page is copied there."""
    record = _find(request.store, request.artifact)
    folder = request.store.path(record.id)
    page = folder / PAGE
    if request.html is not None:
        with disk_errors(request.html):
            request.html.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page, request.html)
        page = request.html
    return Report(id=record.id, created=record.created, table=table_of(folder), figures=load_figures(folder), page=page)


def _find(store: Store, name: str | None) -> Artifact:
    if name is None:
        reports = [r for r in store.records() if r.kind == "report"]
        if not reports:
            raise UserError("report.none")
        return reports[-1]
    record = store.get(name)
    if record.kind != "report":
        raise UserError("report.not_one", id=record.id, kind=record.kind)
    return record
