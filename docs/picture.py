"""Draw docs/demo.svg from what a finished demo prints: python docs/picture.py [WORKSPACE]"""

from __future__ import annotations

import io
import sys
from pathlib import Path

from rich.console import Console

from inhouse.api.run import RunRequest, shortcut
from inhouse.cli import views
from inhouse.core.messages import use_language

ROOT = Path(__file__).resolve().parents[1]


def main(workspace: Path) -> None:
    """Render the newest demo of a workspace; it must have been run before."""
    use_language("en")
    result = shortcut(RunRequest(workspace=workspace, project=ROOT / "examples" / "desk-routing" / "inhouse.yaml"))
    if result is None or result.release is None:
        sys.exit("run the demo first: make demo")
    console = Console(record=True, width=100, highlight=False, file=io.StringIO())
    console.print("[bold]$ make demo[/]")
    shown = result.release.model_copy(update={"evidence": Path(".inhouse/objects/…/measured/evidence.md")})
    report = Path(".inhouse/objects/…/measured/report.html")
    views.run(result.model_copy(update={"release": shown, "report": report}), console)
    console.save_svg(str(ROOT / "docs" / "demo.svg"), title="inhouse", clear=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / ".inhouse")
