"""Sentences in another form, and sentences about another person: right grammar in both languages."""

from __future__ import annotations

from pathlib import Path
from random import Random

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from truth_augment import grow, pieces_of, variants_of

from inhouse.data.lexicons.gender import balance, names, skew, surnames, terms

# Grammar


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("I do not know.", {"I don't know."}),
        ("I don't know.", {"I do not know."}),
        ("I don’t know.", {"I do not know."}),
        ("Don't touch it.", {"Do not touch it."}),
        ("Why don't you call?", set()),  # not: Why do not you call
        ("Isn't Tom here?", set()),
        ("Why isn't Tom here?", set()),
        ("It is late, isn't it?", set()),
        ("He can't stop, he won't stop.", {"He cannot stop, he won't stop.", "He can't stop, he will not stop."}),
        ("That is who I am.", set()),  # not: That is who I'm
        ("Better than it is in Rome.", set()),
        ("It is a dog.", {"It's a dog."}),
        ("It's a dog.", {"It is a dog."}),
        ("It's been long.", set()),  # has, not is
        ("She's gone.", set()),
        ("We've met, I'm sure, they'll come.", {"We have met, I'm sure, they'll come."}),
        ("Take it, for example, now.", {"Take it, for instance, now."}),
        ("For instance, it rains.", {"For example, it rains."}),
        ("We save in order to travel.", {"We save to travel."}),
        ("We save to travel.", set()),
        ("`do not`, {it is a}, don't_do, www.do.not", set()),
    ],
)
def test_contraction_or_phrase_is_right_or_left_alone(text: str, wanted: set[str], tmp_path: Path) -> None:
    found = variants_of("grammar", text, tmp_path, rules=("contractions", "phrases"), change=0.1)
    assert wanted <= found if wanted else found == {text}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Please send me the bill.", {"Could you please send me the bill?"}),
        ("Could you please send me the bill?", {"Please send me the bill.", "Can you please send me the bill?"}),
        ("Hello. Please check it", {"Hello. Could you please check it?"}),
        ("Please note: check the bill.", set()),
        ("Can you help me?", {"Could you help me?"}),
        ("Can you swim?", set()),
        ("Tell me more.", {"Please tell me more."}),
        ("I want to pay.", {"I would like to pay.", "I'd like to pay."}),
        ("What I want to pay.", set()),
        ("如何退款？", {"请问如何退款？"}),
        ("请问如何退款？", {"如何退款？"}),
        ("请问一下。", set()),
        ("帮我查一下。", {"请帮我查一下。", "麻烦帮我查一下。"}),
        ("谁来帮我查一下。", set()),
        ("麻烦您看一下。", {"请您看一下。"}),
        ("这很麻烦。", set()),
        ("好的，谢谢！", {"好的，多谢！", "好的，非常感谢！"}),
        ("谢谢你的帮助。", set()),
    ],
)
def test_request_is_put_politely_or_left_alone(text: str, wanted: set[str], tmp_path: Path) -> None:
    found = variants_of("grammar", text, tmp_path, seeds=12, rules=("requests",), change=0.1)
    assert found == (wanted or {text})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("这样可以吗？", {"这样行吗？", "这样可以么？"}),
        ("有货吗？", {"有货么？"}),
        ("几点下班呢？", {"几点下班？"}),
        ("几点下班？", {"几点下班呢？"}),
        ("怎么办呢？", {"怎么办？"}),
        ("你呢？", set()),
        ("好吧。", set()),
        ("什么时候发货吗？", {"什么时候发货么？"}),  # never two particles
        ("无论如何都行", set()),
        ("最近如何？", set()),
        ("如何是好", set()),
        ("如何办理", {"怎么办理"}),
        ("怎样的人", set()),
        ("怎样办理", {"如何办理"}),
        ("能不能够", set()),
        ("能否办理", {"能不能办理"}),
        ("是否支持", {"是不是支持"}),
    ],
)
def test_chinese_particle_or_phrase_is_right_or_left_alone(text: str, wanted: set[str], tmp_path: Path) -> None:
    found = variants_of("grammar", text, tmp_path, rules=("particles", "phrases"), change=0.1)
    assert found == (wanted or {text})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("This is one.", "This is one"),
        ("This is great!", "This is great."),
        ("One. Two.", "One. Two."),
        ("这是一句。", "这是一句"),
        ("太好了！", "太好了。"),
        ("一。二。", "一。二。"),
        ("v1.", "v1."),
    ],
)
def test_full_stop_changes_only_at_the_end_of_a_single_sentence(text: str, wanted: str, tmp_path: Path) -> None:
    assert variants_of("grammar", text, tmp_path, rules=("stops",)) == {wanted}


def test_grammar_keeps_the_words_to_be_kept(tmp_path: Path) -> None:
    assert variants_of("grammar", "I do not know", tmp_path, keep=("DO NOT",)) == {"I do not know"}


# Counterfactual


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("She told him that her mother saw her.", "He told her that his father saw him."),
        ("The book is hers, not his.", "The book is his, not hers."),
        ("His very own house; his.", "Her very own house; hers."),
        ("He's late and she'll wait; his son’s car.", "She's late and he'll wait; her daughter’s car."),
        ("They let her go and made her happy.", "They let him go and made him happy."),
        ("She told her friends.", "He told his friends."),
        ("I trust her completely.", "I trust him completely."),
        ("I love her friendly dog.", "I love his friendly dog."),
        (
            "I met her last week and her last friend two days ago.",
            "I met him last week and his last friend two days ago.",
        ),
        ("We met her 3 days ago.", "We met him 3 days ago."),
        ("Go to her home and call her back.", "Go to his home and call him back."),
        ("Everyone brings his or her bag for him or her.", "Everyone brings her or his bag for her or him."),
        ("He kissed her goodbye; her then husband left.", "She kissed him goodbye; his then wife left."),
        ("We know her better.", "We know him better."),
        ("Mrs. Lee and Mr. Ray", "Mr. Lee and Ms. Ray"),
        ("Miss Lee", "Mr Lee"),
        ("5 ms on MS DOS", "5 ms on MS DOS"),
        ("I miss Lee", "I miss Lee"),
        ("Ladies and gentlemen", "Gentlemen and ladies"),
        ("HE and She", "SHE and He"),
        ("Martin Luther King and his wife", "Martin Luther King and her husband"),
        ("Sir Isaac knew his sister", "Sir Isaac knew her brother"),
        ("Dear Sir, please", "Dear Madam, please"),
        ("the man page of a sister company", "the man page of a sister company"),
        ("man-made (s)he `his`", "man-made (s)he `his`"),
        ("他的妈妈和她们", "她的爸爸和他们"),
        ("其他人弹吉他，他人不听", "其他人弹吉他，他人不听"),
        ("王女士和李先生，这位女士", "王先生和李女士，这位男士"),
        ("男士服装和男士", "女士服装和女士"),
        ("大丈夫和她丈夫", "大丈夫和他妻子"),
        ("孙子兵法", "孙子兵法"),
    ],
)
def test_gender_is_exchanged_where_a_person_is_meant(text: str, wanted: str, tmp_path: Path) -> None:
    assert variants_of("counterfactual", text, tmp_path, seeds=1) == {wanted}


@pytest.mark.parametrize(
    "text",
    [
        "He gave her flowers.",
        "It made her career.",
        "They elected her president.",
        "I trust her newly built car.",
        'He met her "friend".',
        "She hurt her back.",
        "He examined her and his nurse.",
        "I know her better half.",
    ],
)
def test_row_whose_meaning_decides_the_pronoun_gets_no_copy(text: str, tmp_path: Path) -> None:
    assert grow("counterfactual", pieces_of([[("user", text)]]), tmp_path).is_empty()


PAIRS = [("he", "she"), ("father", "mother"), ("sons", "daughters"), ("nephew", "niece")]
ZH_PAIRS = [("他", "她"), ("爸爸", "妈妈"), ("哥哥", "姐姐"), ("男朋友", "女朋友")]


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.sampled_from([w for p in PAIRS + ZH_PAIRS for w in p]), min_size=1, max_size=6))
def test_exchanging_twice_gives_the_text_again_and_once_exchanges_the_counts(
    words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    text = "；".join(f"that {word} came" if word.isascii() else f"那位{word}来了" for word in words)
    [once] = grow("counterfactual", pieces_of([[("user", text)]]), folder)["text"]
    [twice] = grow("counterfactual", pieces_of([[("user", once)]]), folder)["text"]
    assert twice == text
    [before, after] = (balance(pl.DataFrame({"label": ["x"], "text": [t]})).row(0, named=True) for t in (text, once))
    assert (before["male"], before["female"]) == (after["female"], after["male"])
    assert before["male"] + before["female"] == len(words)


def test_names_change_alike_in_all_texts_of_a_row_and_never_to_one_that_is_there(tmp_path: Path) -> None:
    row = [("user", "Mary asked Susan. Mary's mother knows."), ("assistant", "Mary waits for Peter. Susan, too.")]
    for seed in range(30):
        asked, waits = grow("counterfactual", pieces_of([row]), tmp_path, seed)["text"]
        mary, susan, peter = asked.split()[0], asked.split()[2].rstrip("."), waits.split()[3].rstrip(".")
        assert asked == f"{mary} asked {susan}. {mary}'s father knows."
        assert waits == f"{mary} waits for {peter}. {susan}, too."
        assert len({mary, susan, peter, "Mary", "Susan", "Peter"}) == 6
        assert [names("en")[name] for name in (mary, susan, peter)] == ["male", "male", "female"]


def test_names_alone_keep_their_gender_and_everything_else(tmp_path: Path) -> None:
    text = "Mary told her father that John Smith lives with Etta James; 张伟和王秀英说他来，秀英不来。"
    [new] = grow("counterfactual", pieces_of([[("user", text)]]), tmp_path, swap="names")["text"]
    mary, john = new.split()[0], new.split()[5]
    assert [names("en")[name] for name in (mary, john)] == ["female", "male"] and {mary, john}.isdisjoint(
        {"Mary", "John"}
    )
    chinese = new.split("; ")[1]
    wei, xiuying = chinese[1], chinese[4:6]
    assert chinese == f"张{wei}和王{xiuying}说他来，{xiuying}不来。" and new.startswith(
        f"{mary} told her father that {john} Smith lives with Etta James;"
    )
    assert names("zh1")[wei] == "male" and names("zh")[xiuying] == "female"
    assert wei != "伟" and xiuying != "秀英"


def test_chinese_name_is_none_inside_other_words(tmp_path: Path) -> None:
    for text in ("高峰时段", "安静的文静女孩", "石刚才来"):
        new = variants_of("counterfactual", text, tmp_path, swap="names")
        assert new == {text}


def test_words_to_keep_are_not_exchanged(tmp_path: Path) -> None:
    assert variants_of("counterfactual", "The king saw his son; Mary.", tmp_path, seeds=1, keep=("king", "mary")) == {
        "The king saw her daughter; Mary."
    }


def test_lists_of_names_and_terms_are_in_order() -> None:
    for language in ("en", "zh", "zh1"):
        listed = names(language)
        counts = [sum(whose == gender for whose in listed.values()) for gender in ("male", "female")]
        assert min(counts) >= 15 and max(counts) - min(counts) < 25
    assert not set(names("en")) & {"Will", "Mark", "Grace", "May", "Rose", "Hope", "Jordan", "Taylor", "Paris"}
    assert {"王", "欧阳"} <= surnames()
    for language in ("en", "zh"):
        table = terms(language)
        assert set(table.gender) == set(table.other)
        assert all(
            table.gender[word] != table.gender[other] for word, other in table.other.items() if other in table.gender
        )


# The measure before and after


def test_balance_counts_terms_by_label_and_the_step_evens_them_out(tmp_path: Path) -> None:
    random = Random(3)
    rows = [("nurse", random.choice(["She", "She", "He"]) + " helps her father. 其他人") for _ in range(60)]
    rows += [("boss", random.choice(["He", "He", "She"]) + " leads. 他们说") for _ in range(60)]
    before = pl.DataFrame({"label": [r[0] for r in rows], "text": [r[1] for r in rows]})
    grown = grow("counterfactual", pieces_of([[("user", text)] for _, text in rows]), tmp_path)
    labels = [rows[parent - 1][0] for parent in grown["parent"]]
    after = pl.concat([before, pl.DataFrame({"label": labels, "text": grown["text"]})])
    by_hand = sum(text.startswith("He ") + text.count("father") for label, text in rows if label == "nurse")
    table = balance(before)
    assert table.filter(pl.col("label") == "nurse")["male"].to_list() == [by_hand]
    assert table["label"].to_list() == ["boss", "nurse"]
    assert (skew(table) or 0) > 0.2
    assert balance(after)["male_share"].to_list() == [0.5, 0.5]
    assert skew(balance(after)) == 0
    assert (
        skew(balance(pl.DataFrame({"label": [None], "text": ["x"]}, schema={"label": pl.String, "text": pl.String})))
        is None
    )
