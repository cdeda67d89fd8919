"""Detectors: what each says of single texts, and the compiled pass against a slow reference."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inhouse.guard.numbers import luhn, resident_id_check
from inhouse.guard.pii import RULES, Wanted, _tables, candidates, find, find_many
from inhouse.guard.spans import TYPES, Span, settle


def said(text: str, wanted: Wanted | None = None) -> list[tuple[str, str]]:
    return [(s.type, text[s.start : s.end]) for s in find(text, wanted or Wanted())]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("电话13812345678谢谢", [("phone", "13812345678")]),
        ("电话１３８１２３４５６７８谢谢", [("phone", "１３８１２３４５６７８")]),
        ("a +86 138 1234 5678 b", [("phone", "+86 138 1234 5678")]),
        ("座机010-65529988转8001", [("phone", "010-65529988")]),
        ("0755-26001234-8001", [("phone", "0755-26001234-8001")]),
        ("客服400-820-8820", [("phone", "400-820-8820")]),
        ("Tel: 07700 900123 now", [("phone", "07700 900123")]),
        ("电话13812345678、13912345678", [("phone", "13812345678"), ("phone", "13912345678")]),
        ("13812345678 13912345678", [("phone", "13812345678"), ("phone", "13912345678")]),
        ("2024-01-15 13812345678", [("phone", "13812345678")]),
        ("tel:13812345678", [("phone", "13812345678")]),
        ("tel 138.1234.5678 ok", [("phone", "138.1234.5678")]),
        ("电话:138.1234.5678。", [("phone", "138.1234.5678")]),
        ("手机138·1234·5678", [("phone", "138·1234·5678")]),
        ("+86.138.1234.5678", [("phone", "+86.138.1234.5678")]),
        ("电话 0571.8888.6666", [("phone", "0571.8888.6666")]),
        ("版本 138.1234.5678", []),
        ("5.138.1234.5678 0.139.1234.5678 131.1234.567 3·5", []),
        ("https://wa.me/13812345678", [("phone", "13812345678")]),
        ("https://x.cn/13812345678", []),
        ("abc13812345678", []),
        ("138123456789", []),
        ("call 2125550123 now", [("phone", "2125550123")]),
        ("bytes 2125550123 now", []),
        ("+999 1234567", []),
        ("+1 123 456 7890", []),
        ("x+8613812345678", []),
    ],
)
def test_phones_are_told_from_other_numbers(text: str, wanted: list[Any]) -> None:
    assert said(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("身份证11010519491231002X有效", [("cn_resident_id", "11010519491231002X")]),
        ("11010519491231002x", [("cn_resident_id", "11010519491231002x")]),
        ("身份证110105194912310021", []),
        ("身份证99010519491231002X", []),
        ("身份证110105491231002", [("cn_resident_id", "110105491231002")]),
        ("4111 1111 1111 1111 12/25", [("bank_card", "4111 1111 1111 1111")]),
        ("4111 1111 1111 1111 1111", []),
        ("41111111111111111111", []),
        ("4111111111111112", []),
        ("378282246310005", [("bank_card", "378282246310005")]),
        ("卡号 1000000000000008", [("bank_card", "1000000000000008")]),
        ("number 1000000000000008", []),
        ("order no. 4111111111111111", []),
        ("卡号 4444444444444444", []),
    ],
)
def test_ids_and_cards_need_their_check_digit(text: str, wanted: list[Any]) -> None:
    assert said(text) == wanted


def test_check_digits_agree_with_published_examples() -> None:
    assert resident_id_check("11010519491231002") == "X"  # GB 11643-1999, annex
    assert luhn("79927398713")  # ISO/IEC 7812-1 worked example
    assert sum(luhn(f"7992739871{d}") for d in range(10)) == 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("写给li.lei@qq.com吧", [("email", "li.lei@qq.com")]),
        ("Mail a@b.com.Next line", [("email", "a@b.com")]),
        ("mail a.b@münchen.de now", [("email", "a.b@münchen.de")]),
        ("邮箱zs@例子.中国", [("email", "zs@例子.中国")]),
        ("info@例子.中国谢谢。", [("email", "info@例子.中国")]),
        ("请发li@公司.cn谢谢", [("email", "li@公司.cn")]),
        ("wang@mail.公司.cn。", [("email", "wang@mail.公司.cn")]),
        ("ivan@почта.рф, да", [("email", "ivan@почта.рф")]),
        ("x@例子.今天 a@b。c.d foo@吧。这里.com @小明.com x@-例子.中国", []),
        ("<me@corp.intranetz>", [("email", "me@corp.intranetz")]),
        ("me@corp.intranetz", []),
        ("https://user:pw@host.com/x", []),
        ("git@github.com:a/b.git", []),
        ("x = A@B.transpose()", []),
        ("..a..b@c.com", []),
        ("a@-b.com", []),
        ("logo@3x.png", []),
        ("pkg@1.2.3.sh", []),
        ("server 203.0.113.9:80", [("ipv4", "203.0.113.9")]),
        ("登录IP10.20.30.40。", [("ipv4", "10.20.30.40")]),
        ("version 1.2.3.4", []),
        ("4.2.0.1 is out", []),
        ("host 8.8.8.8", [("ipv4", "8.8.8.8")]),
        ("999.1.1.1 01.2.3.4 1.2.3.4.5 127.0.0.1 10.0.0.0", []),
        ("at 2001:db8::1.", [("ipv6", "2001:db8::1")]),
        ("std::cout a[1::2] 10:20:30 dead::beef cafe:babe:x", []),
        ("fd00:12:34::1/64", [("ipv6", "fd00:12:34::1")]),
    ],
)
def test_network_addresses_are_told_from_code(text: str, wanted: list[Any]) -> None:
    assert said(text) == wanted


def test_private_addresses_are_left_when_asked() -> None:
    text = "host 192.168.1.20, host 8.8.4.4, fd00:1:2::3"
    public = Wanted(private_addresses=False)
    assert [value for _, value in said(text)] == ["192.168.1.20", "8.8.4.4", "fd00:1:2::3"]
    assert [value for _, value in said(text, public)] == ["8.8.4.4"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("护照号码：E12345678", [("passport", "E12345678")]),
        ("E12345678（护照）", [("passport", "E12345678")]),
        ("型号E12345678", []),
        ("粤B·12345违停", [("plate", "粤B·12345")]),
        ("京AD12345", [("plate", "京AD12345")]),
        ("新API12345", []),
        ("License plate: 7ABC123", [("plate", "7ABC123")]),
        ("license plate: REQUIRED", []),
        ("微信：zhangsan", [("wechat", "zhangsan")]),
        ("微信 payments", []),
        ("微信: https://x.cn", []),
        ("QQ群987654321", [("qq", "987654321")]),
        ("QQ 12345%", []),
    ],
)
def test_ids_are_known_by_the_words_before(text: str, wanted: list[Any]) -> None:
    assert said(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("姓名：欧阳娜娜，女", [("name", "欧阳娜娜")]),
        ("姓名：阿布都·热合曼", [("name", "阿布都·热合曼")]),
        ("姓名张三性别男", [("name", "张三")]),
        ("患者高热三天", []),
        ("李雷 13812345678", [("name", "李雷"), ("phone", "13812345678")]),
        ("张伟，男，1980年生", [("name", "张伟")]),
        ("男女平等", []),
        ("王先生来电", [("name", "王")]),
        ("小姐们", []),
        ("my name is john smith", [("name", "john smith")]),
        ("Mr. O'Brien left", [("name", "O'Brien")]),
        ("Name: Apache License", []),
        ("Dear Sir,", []),
    ],
)
def test_names_are_believed_beside_words_that_announce_them(text: str, wanted: list[Any]) -> None:
    assert said(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("我住在北京市朝阳区建国路88号院2号楼1501室。", ["北京市朝阳区建国路88号院2号楼1501室"]),
        ("寄到中山路12号", ["中山路12号"]),
        ("地址：浙江省杭州市西湖区文三路", ["浙江省杭州市西湖区文三路"]),
        ("地铁4号线6月12号开", []),
        (
            "at 1600 Pennsylvania Avenue NW, Washington, DC 20500.",
            ["1600 Pennsylvania Avenue NW, Washington, DC 20500"],
        ),
        ("P.O. Box 1234", ["P.O. Box 1234"]),
        ("a box 1234", []),
        ("Section 3 Main Road Map", []),
    ],
)
def test_addresses_need_divisions_or_road_and_number(text: str, wanted: list[str]) -> None:
    assert said(text) == [("address", value) for value in wanted]


def test_spans_are_characters_of_any_script() -> None:
    text = "😀é中\n手机13812345678；Ω a@b.com"
    assert said(text) == [("phone", "13812345678"), ("email", "a@b.com")]


def test_lone_surrogate_does_not_move_spans() -> None:
    assert said("\ud800手机13812345678") == [("phone", "13812345678")]


def test_wanted_types_and_scores_filter() -> None:
    text = "王先生 13812345678 a@b.com"
    assert [t for t, _ in said(text, Wanted(types=frozenset({"email"})))] == ["email"]
    assert [t for t, _ in said(text, Wanted(at_least=0.95))] == ["email"]


def test_settle_keeps_the_surest_then_the_longest() -> None:
    spans = [Span(0, 5, "qq", 0.5), Span(2, 9, "phone", 0.9), Span(2, 12, "email", 0.9), Span(20, 21, "name", 0.1)]
    assert settle(spans) == [Span(2, 12, "email", 0.9), Span(20, 21, "name", 0.1)]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text("0123456789 +-.()xX@:中号王先生QQ微信aA\n粤１é", max_size=60), max_size=4))
def test_texts_are_judged_alone_and_spans_lie_inside(texts: list[str]) -> None:
    together = find_many(texts)
    for text, spans in zip(texts, together, strict=True):
        assert spans == find(text)
        assert all(0 <= s.start < s.end <= len(text) and s.type in TYPES and 0 < s.score <= 1 for s in spans)
        assert all(a.end <= b.start for a, b in pairwise(spans))


# Other ways to write the same


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("姓名：張曉雯", [("name", "張曉雯")]),
        ("陳大文先生來電", [("name", "陳大文")]),
        ("吳經理", [("name", "吳")]),
        ("業主：鄭偉強", [("name", "鄭偉強")]),
        ("地址：北京市朝陽區建國路88號3號樓", [("address", "北京市朝陽區建國路88號3號樓")]),
        ("護照E12345678", [("passport", "E12345678")]),
        ("微信號wang_xm888", [("wechat", "wang_xm888")]),
        ("車牌粵B12345", [("plate", "粵B12345")]),
        ("電話0912-345-678", [("phone", "0912-345-678")]),
        ("今天天氣很好，我們一起去公園散步", []),
        ("李乾坤先生", [("name", "李乾坤")]),  # 乾 is written in simplified text too
        ("邮箱 ｌｉｓｉ＠１６３．ｃｏｍ 谢谢", [("email", "ｌｉｓｉ＠１６３．ｃｏｍ")]),
        ("lisi＠163.com", [("email", "lisi＠163.com")]),
        ("京Ａ１２３４５", [("plate", "京Ａ１２３４５")]),
        ("Dear Mr. John Smith, hello", [("name", "John Smith")]),
        ("Dear Dr. Wang,", [("name", "Wang")]),
    ],
)
def test_traditional_characters_wide_letters_and_titles_hide_nothing(text: str, wanted: list[Any]) -> None:
    assert said(text) == wanted
    around = find_many(["no one", text, "138 漢字", text])
    assert around[1] == around[3] == find(text)


def test_folding_says_what_its_python_source_says() -> None:
    from inhouse.guard.kernels.fold import fold
    from inhouse.guard.tables.scripts import simplified

    texts = ["張abc鄭é", "", "全Ａ＠ｚ１，。", "漢\U00020000字😀龍", "繁", "a"]
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0] + [len(each) for each in encoded])
    data = np.frombuffer(b"".join(encoded), np.uint8)
    folded, wide = fold(data, offsets, simplified())
    assert [folded[a:b].tobytes().decode() for a, b in pairwise(offsets)] == [
        "张abc郑é", "", "全Ａ＠ｚ１，。", "汉\U00020000字😀龙", "繁", "a",
    ]  # fmt: skip
    assert wide.tolist() == [False, False, True, False, False, False]
    compiled: Any = fold
    slow = compiled.py_func(data, offsets, simplified())
    assert slow[0].tolist() == folded.tolist() and slow[1].tolist() == wide.tolist()


# The compiled pass


def slow_digit_runs(text: str) -> set[tuple[int, int]]:
    """Runs of ASCII digits joined by single spaces or hyphens that hold 10 digits in groups of 3 and more."""
    found = set()
    for run in re.finditer(r"(?<![A-Za-z0-9_])\d+(?:[ -]\d+)*(?![\d.:/,A-Za-z_])", text):
        groups = [len(g) for g in re.findall(r"\d+", run.group())]
        best = total = 0
        for size in groups:
            total = total + size if size >= 3 else 0
            best = max(best, total)
        if best >= 10:
            found.add(run.span())
    return found


@settings(max_examples=200, deadline=None)
@given(st.text("0123456789 -中a", max_size=40))
def test_digit_runs_agree_with_a_slow_reference(text: str) -> None:
    clean = re.sub(r"\d+(?=a)", "", text)
    got = {(s, e) for _, s, e, kind in _candidates(clean) if kind == 1}
    wanted = {span for span in slow_digit_runs(clean) if "  " not in clean and "--" not in clean and "- " not in clean}
    assert wanted <= got or " -" in clean


def _candidates(text: str) -> list[list[int]]:
    data = np.frombuffer(text.encode(), np.uint8)
    return candidates(data, np.array([0, len(data)])).tolist()


def test_every_keyword_is_found_wherever_it_stands() -> None:
    for number, rule in enumerate(RULES):
        for word in rule.words.split():
            word = word.replace("#", " ")
            text = f"5 P.O. {word.title() if word.isascii() else '5' + word}: Is"
            assert number + 1 in [kind for _, _, _, kind in _candidates(text)], text


def test_room_for_candidates_grows() -> None:
    text = "a@b.com " * 2000
    assert len(_candidates(text)) == 2000
    assert len(find(text)) == 2000


def test_compiled_pass_says_what_its_python_source_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from inhouse.guard.kernels import scan as kernels

    samples = [
        "138.1234.5678 0571.8888.6666 86.138.1234.5678 138·1234·5678 zs@例子.中国谢谢 a@ü a@" + "é" * 140,
        "手机１３８12345678，IP8.8.8.8 fe80:1::2 粤B12345 王先生 +33 1 23 45 67 89 v1.2.3.4 212.555.0199 １.5",
        "Mr. Smith, 12 Main St, name is Bob; TEL13812345678 1,234,567 10:20 12/25 555-123-4567x9 a@b.com. x@y",
        "5号 第五号 A5栋 ５号 号 st\n5 \nSt 2001:db8::1 IPfe80:a::1 xIPfe80:a::1 1\u00a02 12\u2011345678901",
        "（010）12345678 1.212.555.0199 @z a..b@c",
        "name : x name's n name= Dear B license plate: 7 aTEL13812345678 Street x_name 1e5 0x10 é好",
    ]
    encoded = [s.encode() for s in samples]
    offsets = np.cumsum([0] + [len(b) for b in encoded])
    data = np.frombuffer(b"".join(encoded), np.uint8)
    compiled = candidates(data, offsets)
    for name, member in list(vars(kernels).items()):
        if hasattr(member, "py_func"):
            monkeypatch.setattr(kernels, name, member.py_func)
    found = np.empty((len(compiled), 4), np.int64)
    with np.errstate(over="ignore"):
        tables = tuple(t.astype(np.int64) if isinstance(t, np.ndarray) else t for t in _tables())
        words, ends, rows = tables[5]
        count = kernels.scan(data.astype(np.int64), offsets, (*tables[:5], (words.astype(np.int64), ends, rows)), found)
    assert count == len(compiled)
    assert found.tolist() == compiled.tolist()
