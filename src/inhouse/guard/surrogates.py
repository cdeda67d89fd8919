"""Stand-ins for personal data: the same value always gets the same one, of the same form, and none can be real.

They come from HMAC-SHA256 of the value under the project's key: without the key nobody can test a guess. A part of each
is a seal, made from the rest under the same key: what only looks like a stand-in is personal data like any other.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator

from inhouse.guard.numbers import FULL_WIDTH, country_code, luhn, resident_id_check
from inhouse.guard.patterns import matches, pattern
from inhouse.guard.spans import PiiType
from inhouse.guard.tables import people

# No operator of China has been given 1540 (as of 2025). No exchange of North America ends in 11: those are services.
MOBILE = "1540"
DIVISION = "99"  # no division's code begins so (GB/T 2260)
ISSUER = "0"  # reserved for industry bodies, on no card (ISO/IEC 7812-1)
STREETS_ZH, STREETS_EN = "示例市样例区示范路", "Example Street, Anytown"
LETTERS = "abcdefghjkmnpqrstuvwxyz"
OF_PLATES = "0123456789ABCDEFGHJKLMNPQRSTUVWXYZ"
TOPS = ("com", "net", "org")  # of example.*: RFC 2606


class Dice:
    """An endless, reproducible choice of numbers from a keyed hash."""

    def __init__(self, key: bytes, type: PiiType, value: str, use: str = "") -> None:
        self._key, self._type = key, type
        self._bytes = self._stream(key, f"{use}{type}\0{value}".encode("utf-8", "surrogatepass"))

    @staticmethod
    def _stream(key: bytes, message: bytes) -> Iterator[int]:
        block = 0
        while True:
            yield from hmac.new(key, message + block.to_bytes(4), hashlib.sha256).digest()
            block += 1

    def below(self, n: int) -> int:
        """A number from 0 to n - 1 (bias below 2^-40)."""
        return int.from_bytes(bytes(next(self._bytes) for _ in range(8))) % n

    def digits(self, n: int) -> str:
        """n decimal digits."""
        return f"{self.below(10**n):0{n}d}" if n > 0 else ""

    def chars(self, n: int, alphabet: str) -> str:
        """n characters of an alphabet."""
        return "".join(alphabet[self.below(len(alphabet))] for _ in range(n))

    def seal(self, body: str) -> Dice:
        """The numbers that prove that a stand-in with this body was made under the key."""
        return Dice(self._key, self._type, body, use="seal\0")


def replacement(value: str, type: PiiType, key: bytes) -> str:
    """The stand-in for a value; a stand-in made under this key stays, so doing it twice changes nothing."""
    if is_stand_in(value, type, key):
        return value
    return MAKERS[type](value, Dice(key, type, canonical(value, type)))


def is_stand_in(value: str, type: PiiType, key: bytes) -> bool:
    """Whether the value was made by `replacement` under this key: its form is a stand-in's and its seal fits."""
    return PROOFS[type](value.translate(FULL_WIDTH), Dice(key, type, ""))


def canonical(value: str, type: PiiType) -> str:
    """The value without what ways of writing it differ in, so that each gets the same stand-in."""
    value = value.translate(FULL_WIDTH)
    if type in ("phone", "cn_resident_id", "bank_card"):
        kept = "".join(c for c in value if c.isalnum()).upper()
        return kept[-11:] if type == "phone" and matches(r"(?:86)?1[3-9][0-9]{9}\z", kept) else kept
    return "".join(value.split()).lower().replace("·", "") if type != "address" else "".join(value.split())


def _write(digits: str, form: str) -> str:
    """The digits in the form of another value: its separators stay, its digits are replaced from the right."""
    left, out = list(digits), []
    for c in reversed(form):
        out.append(left.pop() if (c.isdigit() or c in "xX") and left else c)
    return "".join(reversed(out))


def _digits_of(value: str) -> str:
    return "".join(c for c in value if c.isdigit() or c in "xX").upper()


def _sealed(source: str, value: str, dice: Dice, seal: Callable[[Dice], str]) -> bool:
    """Whether the pattern's second group is the seal of its first."""
    found = pattern(source).search(value)
    return bool(found) and seal(dice.seal(found.group(1))) == found.group(2)


def _two(dice: Dice) -> str:
    return dice.digits(2)


def _three(dice: Dice) -> str:
    return dice.digits(3)


def _four(dice: Dice) -> str:
    return dice.digits(4)


def _letters(dice: Dice) -> str:
    return dice.chars(4, LETTERS)


def _ending(value: str) -> tuple[str, int]:
    """How the national part of a phone begins in a stand-in, as a pattern, and of how many digits it is."""
    value = value.translate(FULL_WIDTH)
    digits = "".join(c for c in value if c.isdigit())
    abroad = value.lstrip("(")[:1] == "+"
    if matches(r"\A861[3-9][0-9]{9}\z" if abroad else r"\A(?:(?:00)?86)?1[3-9][0-9]{9}\z", digits):
        return MOBILE, 11
    if matches(r"\A1[2-9][0-9]{9}\z" if abroad else r"\A1?[2-9][0-9]{2}[2-9][0-9]{6}\z", digits):
        return "2[0-9]{2}[2-8]11", 10  # from 13 on, with the 1 before it, it would read as a mobile phone of China
    if abroad:
        return "00", len(digits) - len(country_code(digits))  # no national number begins with 00
    return "0", len(digits) - (3 if digits.startswith(("01", "02")) else 4)  # no subscriber's number begins with 0


def _phone(value: str, dice: Dice) -> str:
    begins, size = _ending(value)
    if begins.isdigit():
        body = begins + dice.digits(size - len(begins) - 2)
    else:
        body = f"2{dice.digits(2)}{2 + dice.below(7)}11{dice.digits(2)}"
    return _write(body + _two(dice.seal(body)), value)


def _is_phone(value: str, dice: Dice) -> bool:
    begins, size = _ending(value)
    digits = "".join(c for c in value if c.isdigit())
    return size > 2 and _sealed(rf"\A({begins}[0-9]*)([0-9]{{2}})\z", digits[-size:], dice, _two)


def _resident_id(value: str, dice: Dice) -> str:
    day = f"{1940 + dice.below(70)}{1 + dice.below(12):02d}{1 + dice.below(28):02d}"
    old = sum(c.isalnum() for c in value) == 15
    body = DIVISION + dice.digits(4) + (day[2:] if old else day)
    first = body + _three(dice.seal(body))
    return _write(first if old else first + resident_id_check(first), value)


def _is_resident_id(value: str, dice: Dice) -> bool:
    digits = _digits_of(value)
    rest = r"{10})([0-9]{3})\z" if len(digits) == 15 else r"{12})([0-9]{3})[0-9X]\z"
    return _sealed(rf"\A({DIVISION}[0-9]{rest}", digits, dice, _three)


def _bank_card(value: str, dice: Dice) -> str:
    body = ISSUER + dice.digits(sum(c.isdigit() for c in value) - 6)
    first = body + _four(dice.seal(body))
    return _write(next(first + str(d) for d in range(10) if luhn(first + str(d))), value)


def _is_bank_card(value: str, dice: Dice) -> bool:
    value = "".join(c for c in value if c.isdigit())
    form = rf"\A({ISSUER}[0-9]*)([0-9]{{4}})[0-9]\z"
    return luhn(value) and _sealed(form, value, dice, _four)


def _email(value: str, dice: Dice) -> str:
    body = dice.chars(8, LETTERS)
    return f"{body}{_letters(dice.seal(body))}@example.{TOPS[dice.below(3)]}"


def _is_email(value: str, dice: Dice) -> bool:
    return _sealed(rf"\A([a-z]{{8}})([a-z]{{4}})@example\.(?:{'|'.join(TOPS)})\z", value.lower(), dice, _letters)


def _ipv4(value: str, dice: Dice) -> str:
    body = f"{240 + dice.below(15)}.{dice.below(256)}.{dice.below(256)}."  # reserved, never routed: RFC 1112
    return body + _host(dice.seal(body))


def _host(dice: Dice) -> str:
    return str(1 + dice.below(254))


def _is_ipv4(value: str, dice: Dice) -> bool:
    return _sealed(r"\A(2(?:4[0-9]|5[0-4])\.[0-9]+\.[0-9]+\.)([0-9]+)\z", value, dice, _host)


def _groups(dice: Dice, count: int) -> str:
    return ":".join(f"{1 + dice.below(65535):x}" for _ in range(count))


def _ipv6(value: str, dice: Dice) -> str:
    body = "2001:db8:" + _groups(dice, 4)  # RFC 3849
    return f"{body}:{_groups(dice.seal(body), 2)}"


def _is_ipv6(value: str, dice: Dice) -> bool:
    form = r"\A(2001:db8(?::[0-9a-f]+){4}):([0-9a-f]+:[0-9a-f]+)\z"
    return _sealed(form, value.lower(), dice, lambda seal: _groups(seal, 2))


def _passport(value: str, dice: Dice) -> str:
    letters = sum(c.isalpha() for c in value)
    first = "X" * letters + "00" if letters else "0000"
    body = first + dice.digits(len(value) - len(first) - 2)
    return body + _two(dice.seal(body))


def _is_passport(value: str, dice: Dice) -> bool:
    return _sealed(r"\A((?:X+00|0000)[0-9]*)([0-9]{2})\z", value, dice, _two)


def _plate(value: str, dice: Dice) -> str:
    if value[0].isascii():
        body = "XX0" + dice.chars(2, OF_PLATES)
        return body + _of_plate(dice.seal(body))
    places = sum(c.isalnum() for c in value[2:])
    body = value[0] + "O" + dice.chars(places - 2, OF_PLATES)
    left = iter(body[2:] + _of_plate(dice.seal(body)))
    return body[:2] + "".join(next(left, c) if c.isalnum() else c for c in value[2:])


def _of_plate(dice: Dice) -> str:
    return dice.chars(2, OF_PLATES)


def _is_plate(value: str, dice: Dice) -> bool:
    plain = "".join(c for c in value if c.isalnum())
    return _sealed(r"\A((?:XX0|[^\x{00}-\x{7F}]O)[0-9A-Z]*)([0-9A-Z]{2})\z", plain, dice, _of_plate)


def _wechat(value: str, dice: Dice) -> str:
    body = "example_" + dice.chars(8, LETTERS)
    return body + _letters(dice.seal(body))


def _is_wechat(value: str, dice: Dice) -> bool:
    return _sealed(r"\A(example_[a-z]{8})([a-z]{4})\z", value, dice, _letters)


def _qq(value: str, dice: Dice) -> str:
    body = "00" + dice.digits(len(value) - 4)  # neither a QQ number nor a phone begins so
    return body + _two(dice.seal(body))


def _is_qq(value: str, dice: Dice) -> bool:
    return _sealed(r"\A(00[0-9]*)([0-9]{2})\z", value, dice, _two)


def _name(value: str, dice: Dice) -> str:
    if value[0].isascii():
        body = " ".join(people.SURROGATE_GIVEN[dice.below(len(people.SURROGATE_GIVEN))] for _ in range(2))
        return f"{body} {_family(dice.seal(body))}"
    if len(value) == 1:
        return dice.chars(1, people.STEMS)
    body = dice.chars(1, people.SURROGATE_SURNAMES) + dice.chars(1, people.STEMS)
    return body + _stem(dice.seal(body))


def _family(dice: Dice) -> str:
    return people.SURROGATE_FAMILY[dice.below(len(people.SURROGATE_FAMILY))]


def _stem(dice: Dice) -> str:
    return dice.chars(1, people.STEMS)


def _is_name(value: str, dice: Dice) -> bool:
    if len(value) == 1:
        return value in people.STEMS  # no surnames
    if value[:1].isascii():
        form = rf"\A((?:{'|'.join(people.SURROGATE_GIVEN)}) [A-Z][a-z]+) ({'|'.join(people.SURROGATE_FAMILY)})\z"
        return _sealed(form, value, dice, _family)
    return _sealed(rf"\A([{people.SURROGATE_SURNAMES}][{people.STEMS}])([{people.STEMS}])\z", value, dice, _stem)


def _address(value: str, dice: Dice) -> str:
    body = str(100 + dice.below(900))
    number = body + _two(dice.seal(body))
    return f"{number} {STREETS_EN}" if value.isascii() else f"{STREETS_ZH}{number}号"


def _is_address(value: str, dice: Dice) -> bool:
    """Also with what stands behind it: next to a stand-in more text can read as an address."""
    form = rf"\A(?:{STREETS_ZH})?([1-9][0-9]{{2}})([0-9]{{2}})(?:号| {STREETS_EN})"
    return value.startswith(STREETS_ZH) is not value[:1].isdigit() and _sealed(form, value, dice, _two)


MAKERS: dict[PiiType, Callable[[str, Dice], str]] = {
    "phone": _phone,
    "cn_resident_id": _resident_id,
    "bank_card": _bank_card,
    "email": _email,
    "ipv4": _ipv4,
    "ipv6": _ipv6,
    "passport": _passport,
    "plate": _plate,
    "wechat": _wechat,
    "qq": _qq,
    "name": _name,
    "address": _address,
}
PROOFS: dict[PiiType, Callable[[str, Dice], bool]] = {
    "phone": _is_phone,
    "cn_resident_id": _is_resident_id,
    "bank_card": _is_bank_card,
    "email": _is_email,
    "ipv4": _is_ipv4,
    "ipv6": _is_ipv6,
    "passport": _is_passport,
    "plate": _is_plate,
    "wechat": _is_wechat,
    "qq": _is_qq,
    "name": _is_name,
    "address": _is_address,
}
