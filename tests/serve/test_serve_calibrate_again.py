"""A comparison of engines on a busy machine is used, and made again when the machine is quiet or somebody asks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from test_serve_calibrate import Engine, _quick, replica, wait_for

from inhouse.cli.main import main
from inhouse.core.errors import UserError
from inhouse.release.settings import ServeParams
from inhouse.serve import __main__ as program
from inhouse.serve import auto, calibrate, machine_load
from inhouse.serve import recalibrate as again
from inhouse.serve.auto import AutoChoice, Second
from inhouse.serve.calibrate import Calibration
from inhouse.serve.machine_load import Moment
from inhouse.serve.pool import Pool

__all__ = ["_quick"]
ONE_ENGINE = Calibration(few="few", many="few", agreement=1.0)  # what a busy machine may say, and a quiet one does not


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What share other programs use; the last value stays."""
    told = [0.0]
    monkeypatch.setattr(auto, "SAMPLE_S", 0.01)
    monkeypatch.setattr(machine_load, "others_since", lambda since: told.pop(0) if len(told) > 1 else told[0])
    return told


def chosen(path: Path, second: Engine, asked_again: bool = False, mode: Any = "background") -> tuple[Pool, AutoChoice]:
    pool = Pool("r", [replica(Engine("few", 0.0, 0.002))])
    choice = AutoChoice(pool, Second(lambda: replica(second), 1, path), mode, asked_again)
    wait_for(lambda: choice.state in ("done", "failed", "off"))
    choice.close()
    pool.close()
    return pool, choice


def test_busy_machine_is_kept_with_the_result_and_told(
    tmp_path: Path, others: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    others[:] = [0.4]
    chosen(tmp_path / "found.json", Engine("many", 0.005))
    found = calibrate.kept(tmp_path / "found.json")
    assert found is not None and found.others_cpu == 0.4 and found.beside_others
    assert "other programs used 40% of the machine" in caplog.text


@pytest.mark.parametrize(("now", "measured"), [(0.05, True), (0.6, False)])
def test_result_of_a_busy_machine_is_measured_again_on_a_quiet_one_only(
    tmp_path: Path, others: list[float], now: float, measured: bool
) -> None:
    path, second = tmp_path / "found.json", Engine("many", 0.005)
    calibrate.keep(path, ONE_ENGINE.model_copy(update={"others_cpu": 0.5}))
    others[:] = [now]
    _, choice = chosen(path, second)
    found = calibrate.kept(path)
    assert found is not None and choice.state == "done" and (second.asked > 0) == measured
    assert (found.many, found.others_cpu) == (("many", now) if measured else ("few", 0.5))


def test_sound_result_is_measured_again_when_asked_for_and_never_where_measuring_is_off(
    tmp_path: Path, others: list[float]
) -> None:
    path, second = tmp_path / "found.json", Engine("many", 0.005)
    for share, mode in ((0.0, "background"), (None, "background"), (0.9, "off")):
        calibrate.keep(path, ONE_ENGINE.model_copy(update={"others_cpu": share}))
        chosen(path, second, mode=mode)
        assert second.asked == 0
    chosen(path, second, asked_again=True, mode="before")
    found = calibrate.kept(path)
    assert second.asked > 0 and found is not None and (found.many, found.others_cpu) == ("many", 0.0)


def test_earlier_result_stays_when_somebody_asks_meanwhile(
    tmp_path: Path, others: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def disturbed(*_: Any) -> Calibration:
        raise calibrate.Disturbed

    path = tmp_path / "found.json"
    before = Calibration(few="few", many="many", crossover=3, agreement=1.0, others_cpu=0.5)
    calibrate.keep(path, before)
    monkeypatch.setattr(calibrate, "calibrate", disturbed)
    pool, choice = chosen(path, Engine("many", 0.005))
    assert choice.result == before and pool.crossover is not None and pool.crossover.at == 3


def test_children_count_as_ours_and_the_rest_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine_load.moment()
    spin = "import time\nuntil = time.process_time() + 0.4\nwhile time.process_time() < until: pass\ninput()"
    child = subprocess.Popen([sys.executable, "-c", spin], stdin=subprocess.PIPE)
    try:
        wait_for(lambda: sum(psutil.Process(child.pid).cpu_times()[:2]) >= 0.4, 30)
        assert machine_load.moment().ours - before.ours >= 0.4
    finally:
        child.communicate(b"\n", timeout=10)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    monkeypatch.setattr(machine_load, "moment", lambda: Moment(110.0, 1030.0, 60.0))
    assert machine_load.others_since(Moment(100.0, 1000.0, 50.0)) == 0.5  # (30 - 10) of 10 s on 4 cores
    assert machine_load.others_since(Moment(100.0, 1030.0, 50.0)) == 0.0


def test_every_release_that_answers_is_measured_and_its_engines_end(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, str, bool]] = []
    ended: list[float] = []

    def target(registry: Any, release: Any, params: ServeParams, again: bool) -> Any:
        made.append((release.label, params.calibrate, again))
        told = {"state": "done", "few": "a", "many": "b"}
        choice = SimpleNamespace(told=lambda: told) if release.label == "r:v1" else None
        return SimpleNamespace(choice=choice, retire=ended.append)

    arms = tuple(SimpleNamespace(release=SimpleNamespace(label=label)) for label in ("r:v1", "r:v2"))
    registry: Any = SimpleNamespace(deployment=lambda name: SimpleNamespace(arms=arms))
    monkeypatch.setattr(again, "Target", target)
    found = again.measure_again(registry, "desk", ServeParams())
    assert made == [("r:v1", "before", True), ("r:v2", "before", True)] and ended == [0.0, 0.0]
    assert found[0]["calibration"]["many"] == "b" and found[1] == {"release": "r:v2", "calibration": None}


def test_program_prints_what_was_found_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "_params", lambda registry, arguments: ServeParams())
    monkeypatch.setattr(program, "use_language", lambda language: None)
    monkeypatch.setattr(again, "measure_again", lambda registry, name, params: [{"release": name, "calibration": None}])
    assert program.main(["--workspace", str(tmp_path), "--deployment", "desk", "--calibrate"]) == 0
    assert json.loads(capsys.readouterr().out) == {"releases": [{"release": "desk", "calibration": None}]}


def test_command_passes_on_what_the_program_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"few": "llamacpp", "many": "openvino", "crossover": 3, "agreement": 0.9, "others_cpu": 0.02}
    told = {"state": "done", "tokens_per_s": {"llamacpp": {"1": 110.0, "8": 246.0}}, **found}
    says = [json.dumps({"releases": [{"release": "r:v1", "calibration": told}]})]
    monkeypatch.setattr("inhouse.api.calibrations.choose_deployment", lambda registry, name: "desk")
    monkeypatch.setattr(
        "inhouse.api.calibrations.subprocess.run", lambda *_, **__: SimpleNamespace(stdout="\n".join(says).encode())
    )
    (tmp_path / "ws").mkdir()
    words = ["deployments", "calibrate", "--workspace", str(tmp_path / "ws")]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "llamacpp, openvino ≥ 3" in shown and "246 @8" in shown and "2%" in shown
    says[0] = json.dumps({"error": UserError("serve.no_deployment").to_dict()})
    assert main(words) == 2
    says[0] = ""
    assert main(words) != 0
