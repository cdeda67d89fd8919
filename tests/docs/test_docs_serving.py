"""The page on serving says what the code does: its settings, routes, metrics, refusals and commands are compared."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from inhouse.cli.build import api_function, request_model, request_of
from inhouse.cli.commands import Command
from inhouse.cli.main import main
from inhouse.release.keys import SCOPES
from inhouse.release.settings import ServeParams
from inhouse.serve.metrics import Gauges, Metrics
from inhouse.serve.routes import Routes

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "zh")
Setting = tuple[str, str, str]


def page(language: str) -> str:
    return (ROOT / f"docs/{language}/serving.md").read_text(encoding="utf-8")


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", text, re.S)


def commands(text: str) -> list[str]:
    lines = (line for block in blocks(text, "console") for line in block.splitlines())
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    found = re.search(rf"\n## {heading}\n.*?\n\|[-|]+\|\n(.*?)\n\n", text, re.S)
    assert found is not None, heading
    return [[cell.strip() for cell in row[1:-1].split("|")] for row in found[1].splitlines()]


def settings(model: type[BaseModel], before: str = "") -> Iterator[Setting]:
    """Every setting by its dotted name, its default as YAML has it, and what it does."""
    for name, field in model.model_fields.items():
        default = field.default
        if isinstance(default, BaseModel):
            yield from settings(type(default), f"{before}{name}.")
        else:
            number = f"{default:g}" if isinstance(default, float) else str(default)
            shown = str(default).lower() if isinstance(default, bool) else number
            told = "" if default is None or default in ((), {}) else f"`{shown}`"
            yield f"`{before}{name}`", told, field.description or ""


def test_settings_in_english_are_those_of_the_code_word_for_word() -> None:
    assert [tuple(row) for row in table(page("en"), "Settings")] == list(settings(ServeParams))


def test_settings_in_chinese_have_the_same_names_and_defaults() -> None:
    shown = [(name, default) for name, default, _ in table(page("zh"), "设置")]
    assert shown == [(name, default) for name, default, _ in settings(ServeParams)]


@pytest.mark.parametrize("language", LANGUAGES)
def test_settings_that_are_shown_are_accepted(language: str) -> None:
    found = [yaml.safe_load(block)["serve"] for block in blocks(page(language), "yaml")]
    assert found
    for section in found:
        ServeParams.model_validate(section)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_route_scope_and_metric_is_named(language: str) -> None:
    text = page(language)
    families = {re.sub(r"(/v1/(responses|files|batches))/.*", r"\1", route.path) for route in Routes().all()}
    assert {path for path in families if f"`{path}`" not in text} == set()
    named = set(re.findall(r"`(/[\w/{}.]*)`", text)) - {"/inhouse/requests/{id}"}
    assert {path for path in named if path not in families} == set()
    assert {scope for scope in SCOPES if f"| `{scope}` |" not in text} == set()
    told = Metrics(Gauges(lambda: ()), price_per_hour=1.0).text().decode()
    names = set(re.findall(r"^# TYPE inhouse_(\S+)", told, re.M))
    assert len(names) > 15
    assert {name for name in names if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_code_of_a_refusal_is_one_that_the_server_sends(language: str) -> None:
    code = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "src/inhouse/serve").rglob("*.py"))
    heading = "What is refused" if language == "en" else "什么会被拒绝"
    shown = {name for row in table(page(language), heading) for name in re.findall(r"`([a-z_]+)`", row[1])}
    assert len(shown) > 15
    assert {name for name in shown if f'"{name}"' not in code} == set()


def test_both_languages_show_the_same_headings_commands_and_code() -> None:
    en, zh = page("en"), page("zh")
    assert commands(en) == commands(zh)
    code = [[re.sub(r"#.*", "", block) for block in blocks(text, "python")] for text in (en, zh)]
    assert code[0] == code[1]
    assert re.findall(r"^(#+) ", en, re.M) == re.findall(r"^(#+) ", zh, re.M)
    plain = [[re.sub(r" +#.*", "", block) for block in blocks(text, "yaml")] for text in (en, zh)]
    assert plain[0] == plain[1]


def test_python_that_is_shown_is_python() -> None:
    for block in blocks(page("en"), "python"):
        compile(block, "serving.md", "exec")


def test_commands_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    understood = []

    def understand(command: Command, values: dict[str, Any], as_json: bool) -> None:
        request_of(request_model(api_function(command)), values)
        understood.append(command.path)

    monkeypatch.setattr("inhouse.cli.main.call", understand)
    lines = [line for line in commands(page("en")) if line.startswith("inhouse ")]
    codes = {line: main(shlex.split(line)[1:]) for line in lines}
    assert {line: code for line, code in codes.items() if code != 0} == {}
    assert {("deployments", "canary"), ("requests", "show"), ("keys", "rotate")} <= set(understood)


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a page: small letters, no punctuation, hyphens for spaces."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]), ids=str)
def test_links_to_headings_lead_to_one(path: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", path.read_text(encoding="utf-8")):
        assert anchor in anchors(path.parent / target if target else path), f"{target}#{anchor}"
