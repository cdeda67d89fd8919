"""Files whose content is known: pages with their main text, workbooks, documents, archives, damaged files."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape


@dataclass(frozen=True)
class Page:
    """An HTML page, the sentences of its main text, and what must not be in the extract."""

    html: str
    title: str
    wanted: tuple[str, ...]
    unwanted: tuple[str, ...]


NEWS = (
    "The central bank raised its key rate by a quarter point on Tuesday, the third increase this year.",
    "Analysts had expected the move, but several said that the wording of the statement was unusually firm.",
    "Households with variable mortgages will feel the change within two months, according to the bank's own survey.",
)
NEWS_ZH = (
    "中国人民银行周二宣布下调贷款市场报价利率，这是今年以来的第三次调整。",
    "多位分析师表示，此次调整符合市场预期，但声明的措辞比以往更加谨慎。",
    "根据央行的调查，使用浮动利率房贷的家庭将在两个月内感受到变化。",
)
MANUAL = (
    "Install the package with your usual package manager and create a project folder.",
    "The configuration file has three sections; only the first one is required for a start.",
    "pip install example-tool",
)
FORUM_ZH = (
    "请问各位，笔记本电脑充电时为什么会发热？我的机器使用了大约两年。",
    "充电时电池的化学反应会产生热量，如果温度不超过四十五度，一般不需要担心。",
    "建议清理一下风扇，同时避免在被子上使用电脑，这样可以明显降低温度。",
)
TABLE = ("Average rainfall by month", "January", "81 mm", "The driest month is July, when almost no rain falls.")
PLAIN = ("A page of the old web without any structure.", "It still has two paragraphs that somebody wrote.")

COOKIES = (
    '<div id="cookie-banner" class="cookie-consent"><p>We use cookies to improve your experience.</p>'
    "<button>Accept all</button></div>"
)


def pages() -> dict[str, Page]:
    """Six pages by hand: news, Chinese news, a manual, a Chinese forum, a table, and the old web."""
    return {
        "news": _news(),
        "news_zh": _news_zh(),
        "manual": _manual(),
        "forum_zh": _forum_zh(),
        "table": _table(),
        "plain": Page(
            f"<html><head><title>Old</title></head><body><p>{PLAIN[0]}<p>{PLAIN[1]}</body></html>", "Old", PLAIN, ()
        ),
    }


def _news() -> Page:
    body = "".join(f"<p>{s}</p>" for s in NEWS)
    return Page(
        "<!doctype html><html><head><title>Rates rise again | The Daily</title><style>.x{color:red}</style>"
        "<script>var tracking = 'on';</script></head><body>"
        + COOKIES
        + '<header><a href="/">The Daily</a><nav><ul><li><a href="/w">World news</a></li><li><a href="/s">Sports</a>'
        "</li></ul></nav></header><main><article><h1>Rates rise again</h1>" + body + "</article>"
        '<aside class="sidebar"><h3>Most read stories</h3><ul><li><a href="/1">Ten dogs you will not believe</a></li>'
        "</ul></aside></main><footer><p>Copyright The Daily. All rights reserved.</p></footer></body></html>",
        "Rates rise again | The Daily",
        ("Rates rise again", *NEWS),
        ("cookies", "World news", "Sports", "All rights reserved", "tracking", "color:red", "Ten dogs"),
    )


def _news_zh() -> Page:
    body = "".join(f"<p>　　{s}</p>" for s in NEWS_ZH)
    return Page(
        '<!doctype html><html lang="zh"><head><meta charset="gb2312"><title>央行下调利率_财经频道</title></head><body>'
        '<div class="nav"><a href="/">首页</a><a href="/cj">财经新闻</a><a href="/ty">体育赛事</a></div>'
        '<div class="article-content"><h1>央行下调利率</h1>' + body + "</div>"
        '<div class="footer"><p>版权所有 未经许可不得转载</p><p>京ICP备00000000号</p></div>'
        '<div class="cookie-notice"><p>本网站使用缓存文件以改善体验</p></div></body></html>',
        "央行下调利率_财经频道",
        ("央行下调利率", *NEWS_ZH),
        ("首页", "体育赛事", "版权所有", "ICP备", "缓存文件"),
    )


def _manual() -> Page:
    return Page(
        "<html><head><title>Getting started</title></head><body>"
        '<nav class="sidebar"><ul><li><a href="a">Reference guide</a></li><li><a href="b">Changelog</a></li></ul></nav>'
        f'<main role="main"><h1>Getting started</h1><p>{MANUAL[0]}</p><pre><code>{MANUAL[2]}</code></pre>'
        f"<h2>Configuration</h2><p>{MANUAL[1]}</p><ul><li>name of the project</li><li>path of the data</li></ul></main>"
        "<footer>Built with a generator</footer></body></html>",
        "Getting started",
        ("Getting started", *MANUAL, "name of the project", "path of the data"),
        ("Reference guide", "Changelog", "Built with"),
    )


def _forum_zh() -> Page:
    posts = "".join(f'<div class="post"><div class="post-body"><p>{s}</p></div></div>' for s in FORUM_ZH)
    return Page(
        '<html><head><meta charset="utf-8"><title>充电发热怎么办？ - 数码论坛</title></head><body>'
        '<div id="header"><ul class="menu"><li><a href="/login">登录</a></li><li><a href="/r">注册账号</a></li></ul></div>'
        '<div id="content"><h1>充电发热怎么办？</h1>' + posts + "</div>"
        '<div id="footer"><a href="/about">关于我们</a><a href="/contact">联系方式</a></div></body></html>',
        "充电发热怎么办？ - 数码论坛",
        ("充电发热怎么办？", *FORUM_ZH),
        ("注册账号", "关于我们", "联系方式"),
    )


def _table() -> Page:
    rows = "".join(f"<tr><td>{m}</td><td>{v} mm</td></tr>" for m, v in (("January", 81), ("July", 3)))
    return Page(
        "<html><head><title>Rainfall</title></head><body><nav><a href='/'>Weather home</a></nav><main>"
        f"<h1>{TABLE[0]}</h1><table><tr><th>Month</th><th>Rain</th></tr>{rows}</table><p>{TABLE[3]}</p></main>"
        "<footer>Contact the weather office</footer></body></html>",
        "Rainfall",
        TABLE,
        ("Weather home", "Contact the weather office"),
    )
