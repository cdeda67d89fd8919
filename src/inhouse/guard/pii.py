"""Find personal data in Chinese and English text.

One compiled pass names candidates (kernels/scan.py); rules judge each in Python. A text without candidates costs the
pass alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from inhouse.core.plugins import require
from inhouse.guard import addresses, ids, names, network, numbers
from inhouse.guard.spans import TYPES, PiiType, Span, settle

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Offsets = NDArray[np.int64]

Finder = Callable[[str, int, int], list[Span]]
# As in kernels/scan.py.
ANYWHERE, AFTER_NUMBER, AFTER_HOUSE_NUMBER, BEFORE_MARK, AFTER_POST_OFFICE = 0, 1, 2, 3, 4


@dataclass(frozen=True)
class Wanted:
    """Which types to look for, whether addresses of private networks count, and the least score of a span."""

    types: frozenset[PiiType] = field(default_factory=lambda: frozenset(TYPES))
    private_addresses: bool = True
    at_least: float = 0.5


EVERYTHING = Wanted()


@dataclass(frozen=True)
class Rule:
    """What judges a candidate, the types it can say, and for rules by keyword their words and condition."""

    find: Finder
    types: tuple[PiiType, ...]
    words: str = ""
    condition: int = ANYWHERE


def _find_numbers(text: str, start: int, stop: int) -> list[Span]:
    """Numbers, and the name that stands right before a phone or an id."""
    spans = numbers.find_numbers(text, start, stop)
    owned = [s for s in spans if s.type in ("phone", "cn_resident_id")]
    return spans + [name for s in owned for name in names.find_before_number(text, s.start)]


RULES = (
    Rule(_find_numbers, ("phone", "cn_resident_id", "bank_card", "name")),
    Rule(network.find_ipv4, ("ipv4",)),
    Rule(network.find_email, ("email",)),
    Rule(network.find_ipv6, ("ipv6",)),
    Rule(ids.find_plate, ("plate",)),
    Rule(ids.find_passport, ("passport",), "护照 通行证 台胞证 passport"),
    Rule(ids.find_foreign_plate, ("plate",), "license#plate licence#plate plate registration"),
    Rule(ids.find_wechat, ("wechat",), "微信 微信号 薇信 威信 加微 vx wx wechat weixin"),
    Rule(ids.find_qq, ("qq",), "qq 扣扣 企鹅号 企鹅"),
    Rule(
        names.find_after_label,
        ("name",),
        "联络人 连络人 住户 投诉人 报修人 "
        "姓名 患者 病人 联系人 收件人 收货人 寄件人 发件人 申请人 投保人 被保险人 受益人 法定代表人 法人代表 法人 "
        "负责人 经办人 当事人 原告 被告 被告人 客户 户主 持卡人 户名 家属 监护人 医师 医生 护士 作者 记者 学生 "
        "学员 考生 乘客 旅客 车主 租户 承租人 出租人 业主 员工 我叫 名叫 叫做 名字 本人 签名 签字 署名 收款人 "
        "付款人 借款人 担保人 证人 嫌疑人 上诉人 委托人 代理人 受托人 甲方 乙方 用户 会员 同事 老师 妻子 丈夫 "
        "儿子 女儿 父亲 母亲 哥哥 姐姐 弟弟 妹妹 朋友",
    ),
    Rule(
        names.find_before_title,
        ("name",),
        "先生 女士 小姐 太太 同学 老师 教授 医生 大夫 律师 法官 主任 经理 师傅 同志 院士 博士 校长 院长 总监 记者 阿姨 "
        "叔叔 护士 医师",
    ),
    Rule(names.find_beside_gender, ("name",), "男 女"),
    Rule(names.find_after_title, ("name",), "mr mrs ms miss dr prof professor"),
    Rule(names.find_after_english_label, ("name",), "dear"),
    Rule(
        names.find_after_english_label,
        ("name",),
        "name from patient contact sincerely regards attn attention customer cardholder passenger recipient signed "
        "applicant tenant employee beneficiary guardian author",
        BEFORE_MARK,
    ),
    Rule(addresses.find_numbered, ("address",), "号 室 弄 栋 幢 单元 座 组", AFTER_NUMBER),
    Rule(addresses.find_labelled, ("address",), "地址 住址 住所 户籍 籍贯 现住 家住 居住 寄往 寄到 送至 送到 住在"),
    Rule(
        addresses.find_street,
        ("address",),
        "street st avenue ave road rd boulevard blvd drive dr lane ln court ct place pl square sq terrace way parkway "
        "pkwy highway hwy circle cir close crescent row alley trail broadway plaza gardens grove hill mews",
        AFTER_HOUSE_NUMBER,
    ),
    Rule(addresses.find_box, ("address",), "box", AFTER_POST_OFFICE),
)


@cache
def _tables() -> tuple[Any, ...]:
    """The tables of kernels/scan.py: keywords in buckets by how they begin."""
    import numpy as np

    entries = sorted(
        (_bucket(word := w.replace("#", " ").encode()), word, number + 1, rule.condition)
        for number, rule in enumerate(RULES)
        for w in rule.words.split()
    )
    letters, chars = np.zeros(26 * 26 * 27, np.uint16), np.zeros(65536, np.uint16)
    rows, hints = np.zeros((len(entries), 3), np.int64), np.zeros(len(entries), np.uint64)
    for n, ((of_letters, place), word, kind, condition) in enumerate(entries):
        more = n + 1 < len(entries) and entries[n + 1][0] == (of_letters, place)
        rows[n] = kind, condition, more
        heads = letters if of_letters else chars
        heads[place] = heads[place] or n + 1
        hints[heads[place] - 1] |= np.uint64(_hint(word))
    joined = b"".join(word for _, word, _, _ in entries)
    ends = np.cumsum([0] + [len(word) for _, word, _, _ in entries], dtype=np.int64)
    plates = np.zeros(65536, np.bool_)
    for c in "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼使领":
        plates[ord(c)] = True
    return _sorts(), letters, hints.view(np.int64), chars, plates, (np.frombuffer(joined, np.uint8), ends, rows)


def _bucket(word: bytes) -> tuple[bool, int]:
    """Whether a keyword begins with letters, and its place in the table of heads."""
    if word[0] >= 128:
        return False, ord(word.decode()[0])
    first, second, third = (*(c - 97 for c in word[:3]), 26)[:3]
    return True, (first * 26 + second) * 27 + third


def _hint(word: bytes) -> int:
    """What tells a keyword from others of its bucket: the length of its first word, or its second character's end."""
    if word[0] < 128:
        return 1 << len(word.split()[0])
    return 1 << (word[5] & 63) if len(word) >= 6 else (1 << 64) - 1


def _sorts() -> Bytes:
    import numpy as np

    from inhouse.guard.kernels import scan

    sorts = np.full(256, scan.OTHER, np.uint8)
    sorts[48:58] = scan.DIGIT
    sorts[65:91] = sorts[97:123] = scan.LETTER
    sorts[ord("@")], sorts[ord(":")] = scan.AT, scan.COLON
    sorts[0xE3:0xEA] = scan.CJK
    sorts[0xEF] = scan.WIDE
    return sorts


def candidates(data: Bytes, offsets: Offsets) -> NDArray[np.int64]:
    """Places worth a closer look: rows of (text, start, stop, number of the rule + 1), offsets in characters."""
    import numpy as np

    from inhouse.guard.kernels.scan import scan

    room = 256 + len(data) // 256
    while True:
        found = np.empty((room, 4), np.int64)
        count = int(scan(data, offsets, _tables(), found))
        if count <= room:
            return found[:count]
        room = count


def find_all(data: Bytes, offsets: Offsets, wanted: Wanted = EVERYTHING) -> dict[int, list[Span]]:
    """The spans of every text that has any, by its number. Texts lie in `data` as UTF-8, text n at offsets[n:n+2].

    Traditional characters count as their simplified ones, full-width letters as letters.
    """
    require("data", "numba")
    from inhouse.guard.kernels.fold import fold
    from inhouse.guard.tables.scripts import WIDE, simplified

    folded, wide = fold(data, offsets, simplified())
    found = _find_all(folded, offsets, wanted)
    for number in wide.nonzero()[0].tolist():
        found.pop(number, None)
        text = folded[offsets[number] : offsets[number + 1]].tobytes().decode().translate(WIDE)
        if spans := _find_all(*_flat([text]), wanted).get(0):
            found[number] = spans
    return found


def _find_all(data: Bytes, offsets: Offsets, wanted: Wanted) -> dict[int, list[Span]]:
    found: dict[int, list[Span]] = {}
    last, text, judge = -1, "", 0  # judge: the rule that found the span found last
    spans: list[Span] = []
    for number, start, stop, kind in candidates(data, offsets).tolist():
        rule = RULES[kind - 1]
        if wanted.types.isdisjoint(rule.types):
            continue
        if number != last:
            _keep(found, last, text, spans, wanted)
            last, spans, judge = number, [], 0
            text = data[offsets[number] : offsets[number + 1]].tobytes().decode()
        if judge == kind and spans and spans[-1].start <= start and stop <= spans[-1].end:
            continue  # the room number of an address that its house number found
        if more := rule.find(text, start, stop):
            spans += more
            judge = kind
    _keep(found, last, text, spans, wanted)
    return found


def _keep(found: dict[int, list[Span]], number: int, text: str, spans: list[Span], wanted: Wanted) -> None:
    """Settle the spans of a text and keep those that are wanted."""
    kept = [span for span in settle(spans) if span.type in wanted.types and span.score >= wanted.at_least]
    if not wanted.private_addresses:
        kept = [s for s in kept if s.type not in ("ipv4", "ipv6") or not network.is_private(text[s.start : s.end])]
    if kept:
        found[number] = kept


def find_many(texts: Sequence[str], wanted: Wanted = EVERYTHING) -> list[list[Span]]:
    """The spans of each text, in order of their start; they never overlap."""
    require("data", "numpy")
    found = find_all(*_flat(texts), wanted)
    return [found.get(number, []) for number in range(len(texts))]


def _flat(texts: Sequence[str]) -> tuple[Bytes, Offsets]:
    """The texts as UTF-8 behind each other, and where each begins and ends."""
    import numpy as np

    encoded = [text.encode("utf-8", "replace") for text in texts]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(b) for b in encoded], out=offsets[1:])
    return np.frombuffer(b"".join(encoded), np.uint8), offsets


def find(text: str, wanted: Wanted = EVERYTHING) -> list[Span]:
    """The spans of one text, in order of their start; they never overlap."""
    return find_many([text], wanted)[0]
