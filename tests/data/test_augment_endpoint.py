"""Rows that a model has put in other words, against a real local server: what passes the gate, and what is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_server import Reply, chat_server
from truth_augment import grow, pieces_of

from inhouse.core.errors import UserError
from inhouse.data.rewrite import languages

ENGLISH = "Please tell me when the parcel with the number 4711 will arrive at my house in the city."
OTHER = "Could you let me know when the parcel with the number 4711 arrives at my house in the city?"
CHINESE = "请问编号为 4711 的包裹什么时候能送到我家？我已经等了三天了。"
BACK = "请问编号为 4711 的包裹何时送到我家？我已经等待了三天。"
# A translator of a few sentences.
WORDS = {
    (ENGLISH, "Chinese"): "请告诉我编号 4711 的包裹什么时候到我家。",
    ("请告诉我编号 4711 的包裹什么时候到我家。", "English"): OTHER,
    (CHINESE, "English"): "When will parcel 4711 be delivered to my home? I have waited three days.",
    ("When will parcel 4711 be delivered to my home? I have waited three days.", "Chinese"): BACK,
}


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def question(body: dict[str, Any]) -> dict[str, str]:
    return json.loads(body["messages"][-1]["content"])


def said(text: str) -> str:
    return json.dumps({"text": text}, ensure_ascii=False)


def translate(body: dict[str, Any], number: int) -> str:
    asked = question(body)
    return said(WORDS[asked["text"], asked["to"]])


def run(use: str, url: str, texts: list[str], folder: Path, offline: bool = False, **more: Any) -> list[str]:
    endpoint = {"base_url": url, "model": "house", "wait_s": 0.01, "attempts": 1}
    pieces = pieces_of([[("user", text)] for text in texts])
    return grow(use, pieces, folder, offline=offline, endpoint=endpoint, **more)["text"].to_list()


def test_back_translation_goes_through_another_language_and_back(tmp_path: Path) -> None:
    with chat_server(translate) as server:
        assert run("back_translation", server.url, [ENGLISH, CHINESE], tmp_path) == [OTHER, BACK]
        asked = [(question(body)["from"], question(body)["to"]) for body in server.seen]
        assert sorted(asked[:2]) == [("Chinese", "English"), ("English", "Chinese")]
        assert sorted(asked[2:]) == [("Chinese", "English"), ("English", "Chinese")]
        assert run("back_translation", server.url, [ENGLISH, CHINESE], tmp_path, offline=True) == [OTHER, BACK]
        assert len(server.seen) == 4
        assert len({body["messages"][0]["content"] for body in server.seen}) == 1  # one task, so one budget


def test_back_translation_leaves_texts_alone_whose_language_is_unsure_or_has_no_way(tmp_path: Path) -> None:
    with chat_server(translate) as server:
        assert run("back_translation", server.url, ["x7", "", "ok 3"], tmp_path) == []
        assert run("back_translation", server.url, [ENGLISH], tmp_path, through=("en",)) == []
        assert server.seen == []


def test_back_translation_names_a_language_without_an_english_name_by_its_code(tmp_path: Path) -> None:
    with chat_server(lambda body, number: said("Hallo")) as server:
        run("back_translation", server.url, [ENGLISH], tmp_path, through=("nl",))
        assert question(server.seen[0])["to"] == "the language with the code nl"


def test_paraphrase_draws_a_style_for_every_copy(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], number: int) -> str:
        return said(f"{question(body)['text']} In {question(body)['style']} words.")

    with chat_server(answer) as server:
        made = run("paraphrase", server.url, [ENGLISH], tmp_path, copies=6, styles=("many", "few", "good"))
        again = run("paraphrase", server.url, [ENGLISH], tmp_path / "other", copies=6, styles=("many", "few", "good"))
    assert sorted(made) == sorted({f"{ENGLISH} In {style} words." for style in ("many", "few", "good")})
    assert made == again


@pytest.mark.parametrize(
    ("reply", "more"),
    [
        (ENGLISH, {}),  # nothing changed
        ("Thanks.", {}),  # not alike
        (OTHER.replace("4711", "4712"), {}),  # another number
        ("请告诉我编号为 4711 的包裹什么时候到我家，我住在城里的房子。", {"min_similarity": 0.0}),
        (OTHER, {"max_similarity": 0.3}),
        (OTHER, {"keep": ("Please",)}),
        (OTHER, {"max_chars": 10}),
        ("", {}),
    ],
)
def test_new_text_that_fails_the_gate_gives_no_row(reply: str, more: dict[str, Any], tmp_path: Path) -> None:
    with chat_server(lambda body, number: said(reply)) as server:
        assert run("paraphrase", server.url, [ENGLISH], tmp_path, **more) == []


def test_similarity_range_that_is_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing is at least"):
        run("paraphrase", "http://127.0.0.1:1", [ENGLISH], tmp_path, min_similarity=0.9, max_similarity=0.1)


def test_new_text_that_passes_the_gate_gives_a_row(tmp_path: Path) -> None:
    with chat_server(lambda body, number: said(OTHER.replace("4711", "4,711"))) as server:
        made = run("paraphrase", server.url, [ENGLISH], tmp_path, keep=("parcel", "absent"))
    assert made == [OTHER.replace("4711", "4,711")]
    with chat_server(lambda body, number: said(OTHER.replace("4711", ""))) as server:
        assert run("paraphrase", server.url, [ENGLISH], tmp_path, same_numbers=False) == [OTHER.replace("4711", "")]


def test_only_what_a_user_says_is_asked_about_unless_answers_are_wanted(tmp_path: Path) -> None:
    row = [("system", ENGLISH + " a"), ("user", ENGLISH), ("tool", ENGLISH + " b"), ("assistant", ENGLISH + " c")]
    with chat_server(lambda body, number: said(OTHER)) as server:
        params = {"endpoint": {"base_url": server.url, "model": "house"}}
        first = grow("paraphrase", pieces_of([row]), tmp_path, offline=False, **params)
        assert first["text"].to_list() == [ENGLISH + " a", OTHER, ENGLISH + " b", ENGLISH + " c"]
        second = grow("paraphrase", pieces_of([row]), tmp_path, offline=False, answers=True, **params)
        assert second["text"].to_list() == [ENGLISH + " a", OTHER, ENGLISH + " b", OTHER]


def test_text_that_the_endpoint_refuses_gives_no_row_and_the_others_theirs(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], number: int) -> Reply | str:
        return Reply(status=400, raw="{}") if "secret" in question(body)["text"] else said(OTHER)

    with chat_server(answer) as server:
        assert run("paraphrase", server.url, ["My secret is a parcel " + ENGLISH, ENGLISH], tmp_path) == [OTHER]


def test_rewriting_offline_without_kept_answers_says_so(tmp_path: Path) -> None:
    with chat_server(translate) as server, pytest.raises(UserError) as error:
        run("paraphrase", server.url, [ENGLISH], tmp_path, offline=True)
    assert error.value.code == "label.offline" and server.seen == []


def test_languages_of_texts_are_told_by_model_and_script(tmp_path: Path) -> None:
    from inhouse.data.operators.around import Around

    around = Around(0, tmp_path, tmp_path, True)
    assert languages([ENGLISH, CHINESE, "退款", "a 中 word in English text here"], around)[:3] == ["en", "zh", "zh"]
    assert languages([], around) == []
