"""Decisions over all rows that follow each other: each one sees what the ones before it left, whatever the shards."""

from __future__ import annotations

from collections import Counter
from typing import Any

import polars as pl
import pytest
from step_tables import After, after, batch_of, cleaner
from truth_pairs import families, pairs

from inhouse.data import build
from inhouse.data.batch import Batch
from inhouse.data.segments import segments
from inhouse.data.settings import DataParams

PASSAGE = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"


def open_batch(rows: list[tuple[str, str]]) -> Batch:
    """A batch of (text, part) rows whose parts no source stated."""
    batch = batch_of([(text, part, None) for text, part in rows])
    return Batch(batch.rows.with_columns(stated=pl.lit(False)), batch.pieces)


def sides(found: After) -> dict[int, str]:
    return dict(found.batch.rows.select("row", "part").iter_rows())


def cut(*steps: Any) -> list[tuple[list[str], list[str]]]:
    params = DataParams.model_validate({"sources": "-", "steps": steps}).steps
    return [
        ([s.operator.name for s in segment.passing], [s.operator.name for s in segment.deciding])
        for segment in segments(params)
    ]


# rows that change sides


@pytest.mark.parametrize("shard_rows", [7, 50, 8192])
def test_leaks_after_grouping_sees_the_parts_that_grouping_gave(shard_rows: int) -> None:
    groups = families("en", 30)
    rows = [(text, "test" if n % 5 == 0 else "train") for n, text in enumerate(t for group in groups for t in group)]
    rows += [(f"{PASSAGE} and that is what it said", "train")]
    found = after(
        open_batch(rows), cleaner("near_dedup", action="group"), cleaner("leaks", exact="remove"), shard_rows=shard_rows
    )
    side = sides(found)
    row, moved = 0, 0
    for group in groups:
        members = range(row + 1, row + 1 + len(group))
        assert len({side[n] for n in members}) == 1
        moved += sum(side[n] == "test" and rows[n - 1][1] == "train" for n in members)
        row += len(group)
    assert moved > 0
    assert found.drops == {}


def test_leaks_finds_what_rows_that_were_moved_to_the_test_part_hold() -> None:
    one, other = pairs("en", 0.9, 0.95, 1)[0].one, pairs("en", 0.9, 0.95, 1)[0].other
    quoting = (
        f"An article of its own, on other things. {' '.join(other.split()[5:40])}. So far the quotation, then more."
    )
    batch = open_batch([(one, "test"), (other, "train"), (quoting, "train"), ("Nothing of it.", "train")])
    found = after(batch, cleaner("near_dedup", action="group"), cleaner("leaks"), shard_rows=1)
    assert sides(found) == {1: "test", 2: "test", 4: "train"}
    assert found.drops[3][0] == "leaks_test"


def test_segments_begin_anew_after_what_moves_rows_and_before_what_counts_them() -> None:
    near = {"use": "near_dedup"}
    group = {"use": "near_dedup", "action": "group"}
    rare = {"use": "rare_words"}
    exact, leaks, fix = {"use": "exact_dedup"}, {"use": "leaks"}, {"use": "fix_text"}
    assert cut(fix, exact, near, leaks) == [(["fix_text"], ["exact_dedup", "near_dedup", "leaks"])]
    assert cut(fix, group, leaks) == [(["fix_text"], ["near_dedup"]), ([], ["leaks"])]
    assert cut(group, fix) == [([], ["near_dedup"]), (["fix_text"], [])]
    assert cut(fix, rare, leaks) == [(["fix_text"], ["rare_words", "leaks"])]
    assert cut(exact, rare) == [([], ["exact_dedup"]), ([], ["rare_words"])]


# counts are those of the rows that are left


def counted(texts: list[str]) -> Counter[str]:
    return Counter(word for text in texts for word in text.lower().split())


@pytest.mark.parametrize("shard_rows", [1, 3, 1000])
@pytest.mark.parametrize("action", ["report", "drop_documents"])
def test_rare_words_after_dedup_counts_the_rows_that_are_left(
    shard_rows: int, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "COMBINED_FROM", 1)  # what shards say is put together several times on the way
    texts = ["apple pear", "apple pear", "apple plum", "fig fig", "fig fig", "fig plum", "kiwi", "kiwi", "kiwi", "plum"]
    left = list(dict.fromkeys(texts))
    found = after(
        batch_of([(text, "train", None) for text in texts]),
        cleaner("exact_dedup"),
        cleaner("rare_words", action=action, max_share=0.9),
        shard_rows=shard_rows,
    )
    counts = counted(left)
    rare = {word: count for word, count in counts.items() if count < 3}
    assert found.reports == {
        "02-rare_words": {
            "words": counts.total(), "distinct": len(counts), "rare": len(rare),
            "rarest": dict(sorted(rare.items(), key=lambda item: (item[1], item[0]))),
        }
    }  # fmt: skip
    dropped = {row for row, (reason, _) in found.drops.items() if reason == "rare_words"}
    full_of_them = {texts.index(text) + 1 for text in left if all(word in rare for word in text.split())}
    assert dropped == (full_of_them if action == "drop_documents" else set())


@pytest.mark.parametrize("shard_rows", [1, 4, 1000])
def test_boilerplate_after_dedup_counts_the_documents_that_are_left(shard_rows: int) -> None:
    menu = "Home | Products | Contact us | About"
    texts = [menu] * 8 + [f"{menu}\nA story of its own, number {n}, told at great length." for n in range(3)]
    batch = batch_of([(text, "train", None) for text in texts])
    steps = [cleaner("exact_dedup"), cleaner("boilerplate", min_documents=5, min_share=0)]
    assert after(batch, *steps, shard_rows=shard_rows).reports["02-boilerplate"] == {"lines": 0, "most_shared": {}}
    steps[1] = cleaner("boilerplate", min_documents=4, min_share=0)
    found = after(batch, *steps, shard_rows=shard_rows)
    assert found.reports["02-boilerplate"] == {"lines": 1, "most_shared": {menu: 4}}
    assert [row for row, (reason, _) in found.drops.items() if reason == "boilerplate"] == [1]
