"""E-mail and network addresses."""

from __future__ import annotations

from inhouse.guard.patterns import matches
from inhouse.guard.spans import Span

# Second-level endings need no list; these are the top-level ones that people write. Any two letters count as a country.
TOP = (
    "com net org edu gov mil int info biz name pro aero coop museum mobi asia tel jobs travel cat post xxx app "
    "dev io ai cloud online site store shop tech xyz top club vip wang work ltd group live life news blog email "
    "mail page link fun space website world today agency studio design media digital global company center team "
    "zone art game games wiki health care clinic law legal finance bank money fund capital engineering systems "
    "solutions services support network software academy school university education science bio eco green energy "
    "house homes land city town london berlin paris tokyo nyc photo photos gallery video tv radio music film "
    "social chat click host press icu red ren gay love example test invalid localhost local lan internal corp "
    "home"
)
KNOWN = frozenset(TOP.split())
# Top-level domains in other letters than a-z that Chinese and Cyrillic addresses end in (IANA's root zone).
WIDE_TOP = (
    "中国", "中國", "公司", "网络", "網路", "在线", "中文网", "网址", "网店", "网站", "商城", "商店", "集团", "机构",
    "政务", "公益", "香港", "台湾", "台灣", "澳門", "移动", "我爱你", "рф", "укр", "бг",
)  # fmt: skip
PICTURE = r"(?i)\A[0-9](?:\.[0-9])?x\."  # logo@2x.png
MAIL_WORDS = r"(?i)(?:邮箱|邮件|邮址|e-?mail|mail|mailto|contact|from|to|cc)[^0-9A-Za-z\[\]]{0,6}\z"
REMOTE_PATH = r"\A:[A-Za-z0-9_.~/-]*/"
VERSION_WORDS = (
    r"(?i)(?:版本|版|固件|§|(?:^|[^a-z])(?:versions?|ver|v|release|released|build|firmware|oid|section|chapter))"
    r"[^0-9A-Za-z\[\]]{0,4}\z"
)
ADDRESS_WORDS = (
    r"(?i)(?:ip|ipv4|address|addr|host|server|dns|gateway|ping|网关|地址|主机|服务器|来自|from|://)[^0-9\[\]]{0,8}\z"
)
PINNED = r"(?:[=<>~!@^]=?|[A-Za-z0-9_]-)\s?\z|[A-Za-z0-9_)]/\z"  # pkg==1.2.3.4, pkg-1.2.3.4, Chrome/1.2.3.4


def find_email(text: str, start: int, stop: int) -> list[Span]:
    """The e-mail address around an '@', when it is one and not code, a remote path or a file name."""
    local, _, domain = text[start:stop].partition("@")
    if not domain.isascii():
        whole, domain = domain, _wide_domain(domain)
        stop -= len(whole) - len(domain)
    labels = domain.split(".")
    while len(labels) > 2 and labels[-1][:1].isupper() and labels[-1].lower() not in KNOWN:
        stop -= len(labels.pop()) + 1  # the next sentence, begun without a space
    if not local or local.endswith(".") or ".." in local or not all(_is_label(label) for label in labels):
        return []
    if _is_code(text, start, stop, labels):
        return []
    top = labels[-1].lower()
    known = len(top) == 2 or top in KNOWN or not top.isascii()
    if (known and top.isalpha()) or top.startswith("xn--"):
        return [Span(start, stop, "email", 0.97)]
    before = text[max(0, start - 24) : start]
    told = before.endswith("<") or matches(MAIL_WORDS, before)
    return [Span(start, stop, "email", 0.7)] if told and top.isalpha() else []


def _wide_domain(text: str) -> str:
    """The domain in letters of any script that a text begins with; empty for none."""
    end = next((n for n, c in enumerate(text) if not (c.isalnum() or c in "-.")), len(text))
    labels = text[:end].split(".")
    for last in range(len(labels) - 1, 0, -1):
        if top := _top_of(labels[last]):
            return ".".join([*labels[:last], top])
    return ""


def _top_of(label: str) -> str:
    """The top-level domain that a label begins with: Chinese text may go on right behind it."""
    if wide := max((top for top in WIDE_TOP if label.startswith(top)), key=len, default=""):
        return wide
    end = next((n for n, c in enumerate(label) if not c.isascii()), len(label))
    return label[:end] if label[:end].isalpha() and 2 <= end <= 18 else ""


def _is_label(label: str) -> bool:
    return 0 < len(label) <= 63 and "_" not in label and label[0] != "-" and label[-1] != "-"


def _is_code(text: str, start: int, stop: int, labels: list[str]) -> bool:
    after = text[stop : stop + 64]
    before = text[max(0, start - 80) : start].split()
    token = before[-1] if before and not text[start - 1].isspace() else ""
    if after[:1] in ("(", "[") or "://" in token or matches(REMOTE_PATH, after):
        return True
    numbers = sum(label.isdigit() for label in labels)
    return numbers >= 2 or matches(PICTURE, ".".join(labels) + ".")


def find_ipv4(text: str, start: int, stop: int) -> list[Span]:
    """The IPv4 address of four dotted groups, when it is no version. Loopback, masks and the like are no one's."""
    numbers = text[start:stop].split(".")
    if any((len(n) > 1 and n[0] == "0") or int(n) > 255 for n in numbers) or text[stop : stop + 1] in ("_", "-"):
        return []
    first, *rest = (int(n) for n in numbers)
    if first in (0, 127) or first >= 224 or (rest[-1] == 0 and max(rest) == 0):
        return []
    before = text[max(0, start - 32) : start]
    if matches(VERSION_WORDS, before) or matches(PINNED, before) or before[-1:] in ("v", "V", "$"):
        return []
    addressed = matches(ADDRESS_WORDS, before) or text[stop : stop + 1] in ("/", ":")
    if not addressed and first < 10 and max(rest) < 10:
        return []  # 4.2.0.1 without a word is as likely a version
    return [Span(start, stop, "ipv4", 0.95 if addressed else 0.8)]


def find_ipv6(text: str, start: int, stop: int) -> list[Span]:
    """The IPv6 address of the token, when it lies in a range that hosts have."""
    import ipaddress

    token = text[start:stop]
    if token.endswith(":") and not token.endswith("::"):
        token = token[:-1]
    try:
        address = ipaddress.IPv6Address(token)
    except ValueError:
        return []
    routed = address in ipaddress.IPv6Network("2000::/3") or address.is_private or address.is_link_local
    groups = [group for group in token.split(":") if group]
    if not routed or len(groups) < 2:
        return []
    return [Span(start, start + len(token), "ipv6", 0.97)]


def is_private(address: str) -> bool:
    """Whether an address (v4 or v6) belongs to no one: private, link-local or reserved for documentation."""
    import ipaddress

    return not ipaddress.ip_address(address).is_global
