"""Find where personal data could stand: one pass over the bytes of many texts, no decision taken.

A candidate is a place worth a closer look: a digit run of a telling shape, an e-mail's sign, a word that announces a
name. What it is, is judged in Python, candidate by candidate; so this pass must miss nothing and may be wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from inhouse.core.compiled import kernel

DIGITS, IPV4, EMAIL, IPV6, PLATE = 1, 2, 3, 4, 5
MAX_GROUPS = 24
# Conditions on what stands beside a keyword, tested here because the words alone are frequent.
ANYWHERE, AFTER_NUMBER, AFTER_HOUSE_NUMBER, BEFORE_MARK, AFTER_POST_OFFICE = 0, 1, 2, 3, 4
DOTTED, OTHERWISE = 1, 2
OTHER, LETTER, DIGIT, AT, COLON, CJK, WIDE = 0, 1, 2, 3, 4, 5, 6
# 一二三四五六七八九十百零
NUMERALS = (0x4E00, 0x4E8C, 0x4E09, 0x56DB, 0x4E94, 0x516D, 0x4E03, 0x516B, 0x4E5D, 0x5341, 0x767E, 0x96F6)
BYTES = "Array(uint8, 1, 'C', readonly=True)"
OFFSETS = "Array(int64, 1, 'C', readonly=True)"
FOUR = f"UniTuple(int64, 4)({BYTES}, int64, int64, int64)"
FLAGS = "Array(boolean, 1, 'C', readonly=True)"
HEADS = "Array(uint16, 1, 'C', readonly=True)"
KEYS = f"Tuple(({BYTES}, {OFFSETS}, Array(int64, 2, 'C', readonly=True)))"
ROWS = "int64[:, ::1]"


@kernel(inline="always")
def _is_digit(c: int) -> bool:
    return 48 <= c <= 57


@kernel(inline="always")
def _is_letter(c: int) -> bool:
    return 97 <= (c | 32) <= 122


@kernel(inline="always")
def _is_word(c: int) -> bool:
    return 48 <= c <= 57 or 97 <= (c | 32) <= 122 or c == 95


@kernel(inline="always")
def _is_hex(c: int) -> bool:
    return 48 <= c <= 57 or 97 <= (c | 32) <= 102


@kernel(f"int64({BYTES}, int64, int64)")
def _digit_bytes(data: Any, i: int, end: int) -> int:
    """How many bytes the digit at `i` has: 1, 3 for a full-width one, 0 for no digit."""
    if i >= end:
        return 0
    c = data[i]
    if 48 <= c <= 57:
        return 1
    if c == 0xEF and i + 2 < end and data[i + 1] == 0xBC and 0x90 <= data[i + 2] <= 0x99:
        return 3
    return 0


@kernel(f"int64({BYTES}, int64, int64)")
def _separator_bytes(data: Any, i: int, end: int) -> int:
    """Bytes of the separator at `i` that may stand inside a number: space, hyphens, brackets, middle dot; or 0."""
    if i >= end:
        return 0
    c = data[i]
    if c == 32 or c == 45 or c == 40 or c == 41:
        return 1
    if c == 0xC2 and i + 1 < end and (data[i + 1] == 0xA0 or data[i + 1] == 0xB7):
        return 2
    if i + 2 >= end:
        return 0
    if c == 0xE2 and data[i + 1] == 0x80 and 0x90 <= data[i + 2] <= 0x93:
        return 3
    if c == 0xEF and data[i + 1] == 0xBC and (data[i + 2] == 0x88 or data[i + 2] == 0x89 or data[i + 2] == 0x8D):
        return 3
    return 0


@kernel(f"int64({BYTES}, int64, int64, int64)")
def _spoiled(data: Any, start: int, stop: int, end: int) -> int:
    """Whether the digits [start, stop) belong to something else: DOTTED (a decimal, an address), OTHERWISE, or 0."""
    if stop >= end:
        return 0
    c = data[stop]
    if _is_letter(c) or c == 95:
        # X ends a resident id or begins an extension.
        return 0 if (c | 32) == 120 and (stop + 1 >= end or not _is_letter(data[stop + 1])) else OTHERWISE
    if stop + 1 >= end or not _is_digit(data[stop + 1]):
        return 0
    if c == 46:
        return DOTTED
    size = stop - start
    if size <= 4 and (c == 58 or c == 47):  # a time, a date
        return OTHERWISE
    return OTHERWISE if size <= 3 and c == 44 and stop + 3 < end and _is_digit(data[stop + 3]) else 0


@kernel(f"UniTuple(int64, 2)({BYTES}, int64, int64)")
def _dotted(data: Any, start: int, end: int) -> tuple[int, int]:
    """The end of the token of digits and dots at `start`, and its kind: an address, a phone (3.3.4, 3.4.4), or 0."""
    sizes = np.zeros(6, np.int64)
    groups, i, longest = 1, start, 0
    while i < end and (_is_digit(data[i]) or (data[i] == 46 and i + 1 < end and _is_digit(data[i + 1]))):
        if data[i] == 46:
            groups += 1
        elif groups <= 5:
            sizes[groups - 1] += 1
            longest = max(longest, sizes[groups - 1])
        i += 1
    if groups == 4 and longest <= 3:
        return i, IPV4
    if groups == 3 and sizes[0] == 3 and sizes[1] == 3 and sizes[2] == 4:
        return i, DIGITS
    if groups == 3 and sizes[1] == 4 and sizes[2] == 4 and (sizes[0] == 3 or (sizes[0] == 4 and data[start] == 48)):
        return i, DIGITS
    if groups == 4 and sizes[0] == 2 and sizes[1] == 3 and sizes[2] == 4 and sizes[3] == 4:
        return i, DIGITS
    if groups == 4 and sizes[0] == 1 and sizes[1] == 3 and sizes[2] == 3 and sizes[3] == 4:
        return i, DIGITS
    return i, 0


@kernel(f"UniTuple(int64, 2)({BYTES}, int64, int64)")
def _group(data: Any, at: int, end: int) -> tuple[int, int]:
    """The end of the digits at `at`, and how many they are."""
    size = 0
    step = _digit_bytes(data, at, end)
    while step > 0:
        at += step
        size += 1
        step = _digit_bytes(data, at, end)
    return at, size


@kernel(f"int64({BYTES}, int64, int64)")
def _gap(data: Any, at: int, end: int) -> int:
    """Bytes of the one or two separators at `at` when a digit follows them, else 0."""
    gap = _separator_bytes(data, at, end)
    if gap:
        gap += _separator_bytes(data, at + gap, end)
    return gap if gap and _digit_bytes(data, at + gap, end) else 0


@kernel(f"boolean({BYTES}, int64, int64)")
def _glued(data: Any, begin: int, at: int) -> bool:
    """Whether a letter, digit or _ stands right before `at`; IP and TEL may, as in IP10.0.0.1."""
    if at <= begin or not _is_word(data[at - 1]):
        return False
    if at - 2 < begin:
        return True
    last, middle = data[at - 1] | 32, data[at - 2] | 32
    if last == 112 and middle == 105:
        return at - 3 >= begin and _is_word(data[at - 3])
    if last == 108 and middle == 101 and at - 3 >= begin and (data[at - 3] | 32) == 116:
        return at - 4 >= begin and _is_word(data[at - 4])
    return True


@kernel(FOUR)
def _run(data: Any, begin: int, start: int, end: int) -> tuple[int, int, int, int]:
    """The digit run at `start`, its groups joined by separators: start, stop, kind or 0, where to go on."""
    stop, size = _group(data, start, end)
    if _glued(data, begin, start):
        return start, stop, 0, stop
    spoiled = _spoiled(data, start, stop, end)
    if spoiled == DOTTED:
        after, kind = _dotted(data, start, end)
        return start, after, kind, max(after, stop)
    if spoiled:
        return start, stop, 0, stop
    # Groups of one or two digits make dates and tables; no number we want has them but after a plus.
    total, window = size, size if size >= 3 else 0
    widest = window
    for _ in range(MAX_GROUPS):
        gap = _gap(data, stop, end)
        if not gap:
            break
        after, size = _group(data, stop + gap, end)
        if _spoiled(data, stop + gap, after, end):
            break
        stop = after
        total += size
        window = window + size if size >= 3 else 0
        widest = max(widest, window)
    plus = start > begin and data[start - 1] == 43
    return start, stop, DIGITS if widest >= 10 or (plus and total >= 7) else 0, stop


@kernel("int64(uint8)")
def _in_local_part(c: int) -> bool:
    return _is_word(c) or c == 46 or c == 37 or c == 43 or c == 45


@kernel(f"int64({BYTES}, int64, int64)")
def _wide_domain(data: Any, at: int, end: int) -> int:
    """The end of what could be a domain in letters of any script, of which [.., at) is the beginning; 0 for none."""
    i, dots, wide = at, 0, False
    while i < end and i - at <= 254 and (_is_word(data[i]) or data[i] == 45 or data[i] == 46 or data[i] >= 128):
        dots += data[i] == 46
        wide |= data[i] >= 128
        i += 1
    while i < end and i > at and data[i] & 0xC0 == 0x80:  # not in the middle of a character
        i -= 1
    return i if wide and dots else 0


@kernel(FOUR)
def _email(data: Any, begin: int, at: int, end: int) -> tuple[int, int, int, int]:
    """What could be an e-mail address around the '@' at `at`: start, stop, kind or 0, where to go on."""
    left = at
    while left > begin and at - left <= 64 and _in_local_part(data[left - 1]):
        left -= 1
    right = at + 1
    while right < end and right - at <= 254 and (_is_word(data[right]) or data[right] == 45 or data[right] == 46):
        if data[right] == 46 and (right + 1 >= end or not _is_word(data[right + 1])):
            break
        right += 1
    dot = right - 1
    while dot > at and data[dot] != 46:
        dot -= 1
    if left == at:
        return 0, 0, 0, at + 1
    if dot <= at + 1 or right - dot < 3:
        right = _wide_domain(data, right, end)
        return (left, right, EMAIL, at + 1) if right else (0, 0, 0, at + 1)
    return left, right, EMAIL, at + 1


@kernel(FOUR)
def _ipv6(data: Any, begin: int, colon: int, end: int) -> tuple[int, int, int, int]:
    """A token like 2001:db8::1 whose first colon is at `colon`: start, stop, kind or 0, where to go on."""
    left = colon
    while left > begin and colon - left < 5 and _is_hex(data[left - 1]):
        left -= 1
    right, colons = colon, 0
    while right < end and right - colon <= 40 and (_is_hex(data[right]) or data[right] == 58):
        colons += data[right] == 58
        right += 1
    inside = left > begin and (_glued(data, begin, left) or data[left - 1] == 58 or data[left - 1] == 46)
    if colon - left != 4 or colons < 2 or inside or (right < end and _is_word(data[right])):
        return 0, 0, 0, colon + 1
    return left, right, IPV6, right


@kernel(f"boolean({BYTES}, int64, int64)")
def _after_number(data: Any, begin: int, at: int) -> bool:
    """Whether a number, in digits (perhaps with one letter) or in Chinese, stands right before `at`."""
    if at > begin and data[at - 1] == 32:
        at -= 1
    if at <= begin:
        return False
    c = data[at - 1]
    if c < 128:
        return _is_digit(c) or (_is_letter(c) and at - 1 > begin and _is_digit(data[at - 2]))
    if at - 3 < begin:
        return False
    if _digit_bytes(data, at - 3, at):
        return True
    point = (data[at - 3] & 15) << 12 | (data[at - 2] & 63) << 6 | (c & 63)
    return point in NUMERALS


@kernel(f"boolean({BYTES}, int64, int64)")
def _names_street(data: Any, begin: int, at: int) -> bool:
    """Whether the word at `at` begins with a capital and a digit stands within 48 bytes before it in its line."""
    if not 65 <= data[at] <= 90:
        return False
    for i in range(at - 1, max(begin, at - 48) - 1, -1):
        if _is_digit(data[i]):
            return True
        if data[i] == 10:
            return False
    return False


@kernel(f"boolean({BYTES}, int64, int64)")
def _has_mark(data: Any, at: int, end: int) -> bool:
    """Whether a label ends at `at`: 's, ' is', ' name', or a colon, comma or equals sign and a capital follows."""
    if at + 2 >= end:
        return False
    c, mark = data[at], at
    if c == 32:
        mark = at + 1
        c = data[mark]
        if c == 105 or c == 110 or c == 78:  # is, name, Name
            return bool(data[mark + 1] == 115 or data[mark + 1] == 97)
    if c == 39 or c == 0xEF:
        return True
    if c != 58 and c != 44 and c != 61:
        return False
    i = mark + 1
    while i < end and i - mark <= 7 and (data[i] == 32 or data[i] == 10 or data[i] == 9):
        i += 1
    return bool(i < end and (65 <= data[i] <= 90 or data[i] >= 0xC3))


@kernel(f"boolean({BYTES}, int64, int64)")
def _after_post_office(data: Any, begin: int, at: int) -> bool:
    """Whether 'O. ' or 'o ' stands before `at`, as in P.O. Box."""
    if at - 3 < begin or data[at - 1] != 32:
        return False
    return bool(data[at - 2] == 46 or (data[at - 2] | 32) == 111)


@kernel(f"boolean({BYTES}, UniTuple(int64, 4), int64, int64)")
def _condition_holds(data: Any, place: Any, after: int, condition: int) -> bool:
    """Whether what stands before or after a keyword allows it."""
    _, begin, end, at = place
    if condition == ANYWHERE:
        return True
    if condition == BEFORE_MARK:
        return bool(_has_mark(data, after, end))
    if condition == AFTER_POST_OFFICE:
        return bool(_after_post_office(data, begin, at))
    return bool(_after_number(data, begin, at) if condition == AFTER_NUMBER else _names_street(data, begin, at))


@kernel(f"boolean({BYTES}, int64, int64)")
def _is_plate(data: Any, at: int, end: int) -> bool:
    """Whether the character at `at` (3 bytes) is followed by a capital and at least 5 letters or digits."""
    if at + 9 > end or not 65 <= data[at + 3] <= 90:
        return False
    i = at + 4
    while i < at + 7 and not _is_word(data[i]):
        i += 1
    return i + 4 < end and _is_word(data[i]) and _is_word(data[i + 3])


@kernel(f"int64({BYTES}, int64, int64, {BYTES})")
def _has_word(data: Any, at: int, end: int, word: Any) -> bool:
    """Whether the keyword (lower case) stands at `at` and, being of letters, ends there as a word."""
    size = len(word)
    if at + size > end:
        return False
    for k in range(size):
        c = data[at + k]
        if 65 <= c <= 90:
            c |= 32
        if c != word[k]:
            return False
    return word[size - 1] >= 128 or at + size >= end or not _is_letter(data[at + size])


@kernel("int64(int64[:, ::1], int64, UniTuple(int64, 4))")
def _note(found: Any, count: int, row: Any) -> Any:
    """Write a candidate where there is room; the count goes on, so the caller learns how much room it needs."""
    if row[3] and count < len(found):
        for k in range(4):
            found[count, k] = row[k]
    return count + (row[3] != 0)


@kernel(f"int64({BYTES}, UniTuple(int64, 5), {KEYS}, {ROWS}, int64)")
def _words(data: Any, place: Any, keys: Any, found: Any, count: int) -> int:
    """Note the keywords of a bucket that stand at (text, its begin, its end, position, first keyword + 1)."""
    text, begin, end, at, n = place
    words, word_at, rules = keys
    while n:
        first, last = word_at[n - 1], word_at[n]
        after = at + last - first
        if _has_word(data, at, end, words[first:last]) and _condition_holds(
            data, (text, begin, end, at), after, rules[n - 1, 1]
        ):
            count = _note(found, count, (text, at, after, rules[n - 1, 0]))
        n = n + 1 if rules[n - 1, 2] else 0
    return int(count)


@kernel(inline="always")
def _joins(c: int, following: int) -> bool:
    """Whether two bytes after digits may go on the number: a point and a digit, separators and a digit."""
    if c == 46:
        return _is_digit(following)
    if c >= 128:
        return True
    return (c == 32 or c == 45 or c == 40 or c == 41) and (
        _is_digit(following) or following == 32 or following == 40 or following == 41 or following == 45
    )


@kernel(inline="always")
def _plain_until(data: Any, begin: int, at: int, end: int) -> int:
    """The end of a digit run or colon that is nothing we look for, told cheaply as most are; 0 for a closer look."""
    c = data[at]
    stop = at
    if _is_digit(c):
        while stop < end and _is_digit(data[stop]):
            stop += 1
        few = stop - at < 10 and not (at > begin and data[at - 1] == 43)
        return stop if few and (stop + 1 >= end or not _joins(data[stop], data[stop + 1])) else 0
    if c == 58 and (at - 4 < begin or not _is_hex(data[at - 1]) or not _is_hex(data[at - 4])):
        return at + 1
    return 0


@kernel(FOUR)
def _sign(data: Any, begin: int, at: int, end: int) -> tuple[int, int, int, int]:
    """What begins at a digit or stands around an '@' or a colon: start, stop, kind or 0, where to go on."""
    c = data[at]
    if c == 64:
        return _email(data, begin, at, end)
    if c == 58:
        return _ipv6(data, begin, at, end)
    if _digit_bytes(data, at, end):
        return _run(data, begin, at, end)
    return 0, 0, 0, at + 1


@kernel(inline="always")
def _head_of_letters(data: Any, first: int, last: int, heads: Any) -> Any:
    """The first keyword (+ 1) of the bucket for a word: by three letters, or two and none."""
    if last - first < 2:
        return 0
    third = (data[first + 2] | 32) - 97 if last - first > 2 else 26
    return np.int64(heads[(((data[first] | 32) - 97) * 26 + (data[first + 1] | 32) - 97) * 27 + third])


@kernel(f"void({BYTES}, int64, {ROWS})")
def _to_characters(data: Any, begin: int, rows: Any) -> None:
    """Turn the byte offsets (columns 1 and 2) of one text's candidates into character offsets."""
    at, chars = begin, 0
    for r in range(len(rows)):
        start, stop = rows[r, 1], rows[r, 2]
        while at < start:
            chars += (data[at] & 0xC0) != 0x80
            at += 1
        while at > start:  # an e-mail begins before its sign, perhaps before the candidate found last
            at -= 1
            chars -= (data[at] & 0xC0) != 0x80
        length = 0
        for k in range(start, stop):
            length += (data[k] & 0xC0) != 0x80
        rows[r, 1], rows[r, 2] = chars, chars + length


TABLES = f"Tuple(({BYTES}, {HEADS}, {OFFSETS}, {HEADS}, {FLAGS}, {KEYS}))"


@kernel(f"int64({BYTES}, UniTuple(int64, 3), {TABLES}, {ROWS}, int64)")
def _scan_text(data: Any, place: Any, tables: Any, found: Any, count: int) -> int:
    """Note the candidates of one text (its number, begin and end): the new count."""
    text, begin, end = place
    sorts, letters, hints, chars, plates, keys = tables
    at = begin
    while at < end:
        sort = sorts[data[at]]
        if sort == OTHER:
            at += 1
        elif sort == LETTER:
            first = at
            at += 1
            while at < end and sorts[data[at]] == LETTER:
                at += 1
            head = _head_of_letters(data, first, at, letters)
            # The hint spares a call for nine words of ten that begin like a keyword.
            if head and hints[head - 1] >> min(at - first, 31) & 1 and (first == begin or data[first - 1] != 95):
                count = _words(data, (text, begin, end, first, head), keys, found, count)
        elif sort == CJK and at + 2 < end:
            point = (data[at] & 15) << 12 | (data[at + 1] & 63) << 6 | (data[at + 2] & 63)
            if plates[point] and _is_plate(data, at, end):
                count = _note(found, count, (text, at, at + 3, PLATE))
            head = np.int64(chars[point])
            if head and (at + 5 >= end or hints[head - 1] >> (data[at + 5] & 63) & 1):
                count = _words(data, (text, begin, end, at, head), keys, found, count)
            at += 3
        else:
            plain = _plain_until(data, begin, at, end)
            if plain:
                at = plain
                continue
            start, stop, kind, at = _sign(data, begin, at, end)
            count = _note(found, count, (text, start, stop, kind))
    return int(count)


@kernel(f"int64({BYTES}, {OFFSETS}, {TABLES}, {ROWS})")
def scan(data: Any, offsets: Any, tables: Any, found: Any) -> int:
    """Fill `found` with (text, start, stop, kind), offsets in characters; returns how many there are.

    When there are more than `found` has rows, its content is incomplete: call again with as many rows.
    tables: the sort of each byte (256); the first keyword (number + 1) by three letters (26 * 26 * 27); by first
    keyword a hint of its bucket as bits, the lengths of first words or the last six bits of second characters; the
    first keyword by character (65536); the characters that begin a plate; and the keywords: their bytes, their
    offsets from 0, and their (kind, condition, 1 when the next keyword is of the same bucket).
    """
    count = 0
    for text in range(len(offsets) - 1):
        begin, end = offsets[text], offsets[text + 1]
        first = count
        count = _scan_text(data, (text, begin, end), tables, found, count)
        if first < count <= len(found):
            _to_characters(data, begin, found[first:count])
    return int(count)
