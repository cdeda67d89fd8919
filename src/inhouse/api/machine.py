"""What this machine can do."""

from __future__ import annotations

from pydantic import Field

from inhouse.api.request import Request
from inhouse.release.settings import ServeParams
from inhouse.select.doctor import Diagnosis, examine


class DoctorRequest(Request):
    """What to look at."""

    port: int = Field(ServeParams().port, ge=1, le=65535, description="port that will be served on")


def doctor(request: DoctorRequest) -> Diagnosis:
    """Look at the machine, the installation and the workspace; changes nothing."""
    return examine(request.store.root, request.port, request.offline)
