"""Labelled texts in English and Chinese with known label noise, made by seeded code."""

from __future__ import annotations

import random
from dataclasses import dataclass

from inhouse.data.label.items import Item, text_id

TOPICS = {
    "refund": (
        ["refund", "money", "back", "returned", "charge", "twice", "invoice", "cancelled", "payment", "card"],
        ["退款", "退钱", "重复扣费", "账单", "取消订单", "银行卡", "支付失败", "返还"],
    ),
    "delivery": (
        ["parcel", "courier", "late", "tracking", "address", "shipped", "lost", "warehouse", "driver", "doorstep"],
        ["快递", "包裹", "物流", "延误", "地址", "发货", "丢件", "仓库", "派送", "签收"],
    ),
    "account": (
        ["password", "login", "locked", "email", "verify", "profile", "username", "reset", "code", "session"],
        ["密码", "登录", "账号", "锁定", "邮箱", "验证码", "用户名", "重置", "头像", "注销"],
    ),
}
COMMON = (
    ["please", "help", "me", "today", "waiting", "nobody", "answers", "the", "phone", "thanks", "again", "for", "time"],
    ["请问", "你好", "麻烦", "帮忙", "看一下", "谢谢", "一直", "没人", "回复", "今天", "怎么办", "客服"],
)


@dataclass(frozen=True)
class Planted:
    """Rows, and the ids of those whose label was changed, with the label they should have."""

    rows: list[Item]
    wrong: dict[str, str]


def texts_of(seed: int, count: int) -> list[tuple[str, str]]:
    """(text, true label) pairs, half English and half Chinese; topic words are a third of each text."""
    draw = random.Random(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        label = draw.choice(sorted(TOPICS))
        chinese = draw.random() < 0.5
        other = draw.choice(sorted(set(TOPICS) - {label}))
        words = draw.choices(TOPICS[label][chinese], k=draw.randint(3, 5)) + draw.choices(COMMON[chinese], k=9)
        words += draw.choices(TOPICS[other][chinese], k=draw.randint(0, 2))  # texts that touch on two topics
        draw.shuffle(words)
        found.setdefault(("" if chinese else " ").join(words), label)
    return list(found.items())


def planted_noise(seed: int, count: int, share: float) -> Planted:
    """Rows of which `share` carry another label than their text has."""
    draw = random.Random(seed + 1)
    pairs = texts_of(seed, count)
    chosen = set(draw.sample(range(count), round(share * count)))
    rows, wrong = [], {}
    for number, (text, true) in enumerate(pairs):
        label = true
        if number in chosen:
            label = draw.choice(sorted(set(TOPICS) - {true}))
            wrong[text_id(text)] = true
        rows.append(Item(text_id(text), text, label, {"text": text, "label": label}))
    return Planted(rows, wrong)
