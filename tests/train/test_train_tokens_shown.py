"""`inhouse data tokens`: what the model reads of a workspace's rows, from a project that was run so far."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from inhouse.api.tokens import TokensRequest, show_tokens
from inhouse.cli import views
from inhouse.cli.main import Lazy
from inhouse.cli.token_views import tokens, visible
from inhouse.core.errors import UserError
from inhouse.core.messages import use_language
from inhouse.core.run import Events
from inhouse.core.store import Store
from inhouse.flow.pipeline import pipeline
from inhouse.flow.plan import until
from inhouse.flow.project import load
from inhouse.flow.runner import Run
from inhouse.flow.runner import run as run_nodes


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


LONG = "wheat and corn exports fell " * 20
ROWS: list[dict[str, Any]] = [
    {"messages": [user("oil?"), assistant("crude 🚢"), user("rate?"), assistant("the bank")]},
    {"messages": [user("oil?"), assistant(LONG)]},
    {"chosen": [user("which [b]?"), assistant("good")], "rejected": [user("which [b]?"), assistant("bad")]},
    {"text": "wheat and corn exports fell\tafter a poor grain harvest"},
]


class Shown:
    """A project folder whose base and dataset are made."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        self.base = base
        (folder / "inhouse.yaml").write_text(
            "version: 1\nname: demo\n"
            f"model: {{base: {base}}}\n"
            "data:\n  sources:\n"
            + "".join(f"    - {{name: s{n}, from: {n}.jsonl, part: train}}\n" for n in range(len(ROWS)))
            + "    - {name: t, from: t.jsonl, part: test}\n  steps: []\n"
            "train: {max_length: 90, turns: all}\n",
            encoding="utf-8",
        )
        for n, row in enumerate(ROWS):
            (folder / f"{n}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        (folder / "t.jsonl").write_text(json.dumps(ROWS[0] | {"x": 1}) + "\n", encoding="utf-8")

    def made(self, room: str) -> None:
        store = Store(self.folder / ".inhouse")
        store.create()
        nodes = until(pipeline(load(self.folder)), room)
        run_nodes(nodes, Run(store, self.folder, Events(), True))

    def request(self, **more: Any) -> TokensRequest:
        return TokensRequest(workspace=self.folder / ".inhouse", project=self.folder, offline=True, **more)


@pytest.fixture(scope="module")
def shown(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    project = Shown(tmp_path_factory.mktemp("project"), tiny_llama)
    with pytest.raises(UserError) as error:
        show_tokens(project.request())
    assert error.value.code == "tokens.not_built" and "--until select" in str(error.value)
    project.made("select")
    with pytest.raises(UserError, match="--until data") as error:
        show_tokens(project.request())
    project.made("data")
    return project


def texts(row: Any, label: str, sample: int = 0) -> str:
    return "".join(token.text for token in row.samples[sample].tokens if token.label == label)


CLASSES = """
version: 1
name: classes
model: {{base: {base}}}
data:
  sources: [{{name: news, from: news.csv, licence: Apache-2.0, allowed_use: any}}]
  split: {{test: 0.25}}
  steps: []
  shape: {{use: classification, labels: [money, grain], prompt: "{{text}}"}}
train: {{objective: classify, max_length: 90}}
"""


def test_classifier_reads_the_question_alone_and_learns_its_label(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Shown(tmp_path, tiny_llama)
    (tmp_path / "inhouse.yaml").write_text(CLASSES.format(base=tiny_llama), encoding="utf-8")
    rows = [
        f"the{f' {word}' * (n + 1)},{label}" for n in range(8) for word, label in (("bank", "money"), ("corn", "grain"))
    ]
    (tmp_path / "news.csv").write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    project.made("select")
    project.made("data")
    found = show_tokens(project.request(n=2))
    assert found.counts["learned"] == 0 and found.counts["rows"] == found.counts["samples"] > 0
    for row in found.rows:
        [sample] = row.samples
        said = "".join(token.text for token in sample.tokens)
        assert sample.answer in ("money", "grain") and sample.answer not in said
        assert ("bank" in said) == (sample.answer == "money") and {token.label for token in sample.tokens} == {
            "context"
        }
    views.show("tokens", found, as_json=False)
    assert f"label {found.rows[0].samples[0].answer}" in capsys.readouterr().out
    lengths = sorted(len(row.samples[0].tokens) for row in show_tokens(project.request(n=99)).rows)
    short = show_tokens(project.request(n=99, overrides=(f"train.max_length={lengths[-1] - 1}",)))
    dropped = [row.samples[0] for row in short.rows if row.samples[0].name == "dropped"]
    assert len(dropped) == short.counts["dropped"] == lengths.count(lengths[-1])
    assert {len(sample.tokens) for sample in dropped} == {lengths[-1]}


def test_learned_context_and_cut_tokens_make_up_what_the_template_writes(shown: Shown) -> None:
    (row,) = show_tokens(shown.request(row="s0:0")).rows
    assert texts(row, "learned") == "crude 🚢<|im_end|>the bank<|im_end|>"
    assert texts(row, "cut") == "\n"
    assert "".join(token.text for token in row.samples[0].tokens) == (
        "<|im_start|>user\noil?<|im_end|>\n<|im_start|>assistant\ncrude 🚢<|im_end|>\n"
        "<|im_start|>user\nrate?<|im_end|>\n<|im_start|>assistant\nthe bank<|im_end|>\n"
    )


def test_row_over_the_limit_is_cut_as_a_whole_or_from_where_it_is_truncated(shown: Shown) -> None:
    dropped = show_tokens(shown.request(row="s1/1.jsonl:0")).rows[0]
    assert dropped.samples[0].name == "dropped"
    assert {token.label for token in dropped.samples[0].tokens} == {"cut"}
    found = show_tokens(shown.request(row="s1:0", overrides=("train.over_length=truncate",)))
    labels = [token.label for token in found.rows[0].samples[0].tokens]
    assert labels.index("cut") == 90 and labels[89] == "learned"


def test_preference_shows_both_answers_and_a_document_is_learned(shown: Shown) -> None:
    (pair,) = show_tokens(shown.request(row="s2:0")).rows
    assert [sample.name for sample in pair.samples] == ["chosen", "rejected"]
    assert [texts(pair, "learned", n) for n in (0, 1)] == ["good<|im_end|>", "bad<|im_end|>"]
    (document,) = show_tokens(shown.request(row="s3:0")).rows
    assert texts(document, "learned").endswith("grain harvest<|im_end|>")


def test_counts_are_those_of_the_part(shown: Shown) -> None:
    found = show_tokens(shown.request(n=2))
    assert len(found.rows) == 2 and found.part == "train"
    assert (found.counts["rows"], found.counts["samples"], found.counts["dropped"]) == (4, 3, 1)
    test = show_tokens(shown.request(row="t:0"))
    assert test.part == "test" and test.counts["rows"] == 1


def test_limit_is_that_of_the_training_the_positions_of_the_model_included(shown: Shown) -> None:
    positions = json.loads((shown.base / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    asked = {"overrides": (f"train.max_length={10 * positions}",), "n": 0}
    assert show_tokens(shown.request(**asked)).max_length == positions
    stretched = ("train.rope_scaling.rope_type=linear", "train.rope_scaling.factor=2")
    asked["overrides"] = (*asked["overrides"], *stretched)
    assert show_tokens(shown.request(**asked)).max_length == 2 * positions


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"row": "nowhere:3"}, "tokens.row_unknown"),
        ({"part": "valid"}, "tokens.no_rows"),
        ({"section": 2}, "tokens.no_training"),
    ],
)
def test_what_is_not_there_is_told(shown: Shown, asked: dict[str, Any], code: str) -> None:
    with pytest.raises(UserError) as error:
        show_tokens(shown.request(**asked))
    assert error.value.code == code and str(error.value)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [80, 120])
def test_terminal_shows_labels_with_and_without_colours(shown: Shown, width: int, language: str) -> None:
    use_language(language)
    result = show_tokens(shown.request(n=4))
    plain, coloured = io.StringIO(), io.StringIO()
    tokens(result, Console(width=width, soft_wrap=True, file=plain))
    tokens(result, Console(width=width, soft_wrap=True, file=coloured, force_terminal=True, color_system="truecolor"))
    assert "⟦crude 🚢<|im_end|>⟧" in plain.getvalue() and "which [b]?" in plain.getvalue()
    assert "⟦" not in coloured.getvalue() and "\x1b[" in coloured.getvalue()
    head = plain.getvalue().partition("⟦")[0]
    assert max(map(len, head.splitlines())) <= width


def test_every_token_has_a_line_with_ids_and_long_samples_are_shortened(
    shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inhouse.cli.token_views.MOST_TOKENS", 5)
    result = show_tokens(shown.request(row="s0:0"))
    out = io.StringIO()
    tokens(result, Console(width=100, soft_wrap=True, file=out))
    assert f"{len(result.rows[0].samples[0].tokens) - 5} more tokens" in out.getvalue()
    out = io.StringIO()
    tokens(result.model_copy(update={"ids": True}), Console(width=100, soft_wrap=True, file=out))
    lines = [line.split() for line in out.getvalue().splitlines() if line.strip()]
    for place, token in enumerate(result.rows[0].samples[0].tokens, 1):
        assert [str(place), str(token.id)] in [line[:2] for line in lines]
    out = io.StringIO()
    tokens(result.model_copy(update={"rows": ()}), Console(width=100, soft_wrap=True, file=out))
    assert "⟦" not in out.getvalue()


def test_invisible_characters_are_written_out() -> None:
    assert visible("a\tb\r\n\u200b ") == "a⇥b␍↵\n\\u200b "


def test_command_takes_a_project_and_prints_json(shown: Shown) -> None:
    command = ["data", "tokens", str(shown.folder), "-n", "1", "--workspace", str(shown.folder / ".inhouse"), "--json"]
    done = CliRunner().invoke(Lazy("inhouse", ()), command)
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert len(found["rows"]) == 1 and found["max_length"] == 90
