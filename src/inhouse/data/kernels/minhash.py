"""MinHash keys and sketches of documents, over character shingles.

A shingle is 8 letters or 5 Chinese characters, and where the scripts mix, in proportion: each character weighs as much
as its script says, and a shingle is as long as its weight needs. So equal passages give equal shingles whatever the
rest of the document is written in; a length chosen by a whole document's share of Chinese would give two nearly equal
documents on either side of the border nothing in common.

Sources: Broder 1997 (resemblance); Indyk and Motwani 1998 (bands); Li and König 2010 (b-bit minwise hashing); Li, Owen
and Zhang 2012 (one permutation hashing).
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import float64, int64, types, uint8, uint32, uint64, void

from inhouse.core.compiled import kernel
from inhouse.data.kernels.kept import table

if TYPE_CHECKING:
    from numpy.typing import NDArray

REACH = 64
MOST_STARS = 1024
SKETCH_BINS = 1024  # standard error of a Jaccard of 0.7: 0.014
WIDE = np.uint32(1 << 31)  # marks a character of a script that is written without spaces or in syllables
SPACE = np.uint32(32)
LONGEST_SHINGLE = 64
NEXT_BITS = 21
POINT = (1 << NEXT_BITS) - 1
EMPTY = np.uint32(0xFFFFFFFF)

# What is only read may come from a memory-mapped file.
BYTES, READ_U32S, READ_U64S, READ_I64S = (
    types.Array(number, 1, "C", readonly=True) for number in (uint8, uint32, uint64, int64)
)
SKETCHES = types.Array(uint8, 2, "C", readonly=True)
U32S, U64S, I64S, F64S = uint32[::1], uint64[::1], int64[::1], float64[::1]

tuple_of: Any = types.Tuple  # numba does not say what type it has
TEXTS = tuple_of((BYTES, I64S))  # bytes and offsets
RULE = tuple_of((U32S, U64S, I64S))  # folding, powers, and letters and wide characters of a run

# CJK radicals to Yi (kana among them), Hangul syllables, compatibility ideographs.
WIDE_RANGES = ((0x2E80, 0xA4CF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF))


@table
def folding() -> NDArray[np.uint32]:
    """What each code point below 65536 counts as: lower case, half width; 32 for white space, 0 for nothing at all."""
    found = np.zeros(1 << 16, np.uint32)
    for code in range(1 << 16):
        folded = fold(chr(code))
        found[code] = 0 if folded is None else ord(folded)
    for first, last in WIDE_RANGES:
        part = found[first : last + 1]
        part[part > SPACE] |= WIDE
    return found


def fold(character: str) -> str | None:
    """The character as comparisons see it: NFKC and lower case where that is one character; None to leave it out."""
    folded = unicodedata.normalize("NFKC", character).lower()
    if len(folded) != 1:
        folded = character.lower() if len(character.lower()) == 1 else character
    if folded.isspace():
        return " "
    return None if unicodedata.category(folded) in ("Cc", "Cf", "Cs") else folded


@cache
def powers() -> NDArray[np.uint64]:
    """Powers of the rolling hash's base, modulo 2**64."""
    found = [pow(0x9E3779B97F4A7C15, n, 1 << 64) for n in range(LONGEST_SHINGLE + 1)]
    return np.array(found, np.uint64)


@cache
def permutations(count: int) -> NDArray[np.uint32]:
    """Factors (odd) and summands of `count` permutations h -> a*h + b of 32-bit numbers; the same on every machine."""
    drawn = [_splitmix(n) for n in range(count)]
    return np.array([[d >> 32 | 1 for d in drawn], [d & 0xFFFFFFFF for d in drawn]], np.uint32)


def _splitmix(n: int) -> int:
    """The n-th number of SplitMix64 (Steele, Lea and Flood 2014) from seed 0."""
    mask = (1 << 64) - 1
    z = (n + 1) * 0x9E3779B97F4A7C15 & mask
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
    return z ^ (z >> 31)


@kernel(int64(BYTES, int64))
def code_point(data: Any, at: int) -> Any:
    """The code point that begins at a byte of valid UTF-8, and above its 21 bits where the next one begins."""
    lead = np.int64(data[at])
    if lead < 0x80:
        return lead | (at + 1) << NEXT_BITS
    if lead < 0xE0:
        return (lead & 31) << 6 | data[at + 1] & 63 | (at + 2) << NEXT_BITS
    if lead < 0xF0:
        return (lead & 15) << 12 | (data[at + 1] & 63) << 6 | data[at + 2] & 63 | (at + 3) << NEXT_BITS
    high = (lead & 7) << 18 | (data[at + 1] & 63) << 12
    return high | (data[at + 2] & 63) << 6 | data[at + 3] & 63 | (at + 4) << NEXT_BITS


@kernel(uint32(int64, U32S))
def folded_point(point: int, table: Any) -> Any:
    """A code point as comparisons see it, with the mark WIDE; beyond the table only ideographs are wide."""
    if point < 0x10000:
        return table[point]
    return np.uint32(point) | (WIDE if point >= 0x20000 and point < 0x40000 else np.uint32(0))


@kernel(int64(BYTES, int64, int64, U32S, U32S))
def folded_text(data: Any, start: int, end: int, table: Any, out: Any) -> Any:
    """Write the text's folded characters to `out`, runs of white space as one and none at the ends; how many."""
    count, at, space = 0, start, False
    while at < end:
        packed = code_point(data, at)
        at = packed >> NEXT_BITS
        folded = folded_point(packed & POINT, table)
        if folded == SPACE:
            space = count > 0
        elif folded != 0:
            if space:
                out[count] = SPACE
                count += 1
                space = False
            out[count] = folded
            count += 1
    return count


@kernel(int64(U32S, int64, U64S, I64S, U32S))
def shingle_hashes(text: Any, length: int, power: Any, window: Any, out: Any) -> Any:
    """Write a 32-bit hash of every shingle to `out`; how many. `window`: its letters, or its wide characters."""
    letters, wides = window[0], window[1]
    full = letters * wides
    rolling, weight, first, count = np.uint64(0), 0, 0, 0
    for last in range(length):
        rolling = rolling * power[1] + np.uint64(text[last])
        weight += letters if text[last] >= WIDE else wides
        oldest = letters if text[first] >= WIDE else wides
        while weight - oldest >= full:
            rolling -= np.uint64(text[first]) * power[last - first]
            weight -= oldest
            first += 1
            oldest = letters if text[first] >= WIDE else wides
        if weight >= full:
            mixed = (rolling ^ (rolling >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
            out[count] = np.uint32(mixed >> np.uint64(32))
            count += 1
    return count


@kernel(void(U32S, int64, U32S, U32S, U32S))
def least_under_permutations(hashes: Any, count: int, factors: Any, summands: Any, out: Any) -> None:
    """Write the smallest hash under each permutation to `out`."""
    # Shingles inside, permutations outside: a reduction that stays in registers, 1.6 times as fast as the other way.
    for k in range(len(factors)):
        factor, summand, least = factors[k], summands[k], EMPTY
        for i in range(count):
            least = min(least, np.uint32(np.uint32(factor * hashes[i]) + summand))
        out[k] = least


@kernel(int64(I64S))
def longest(offsets: Any) -> Any:
    """Bytes of the longest text."""
    most = np.int64(0)
    for n in range(len(offsets) - 1):
        most = max(most, offsets[n + 1] - offsets[n])
    return most


@kernel(void(TEXTS, RULE, uint32[:, ::1], uint32[:, ::1], I64S))
def sign(texts: Any, rule: Any, drawn: Any, found: Any, counts: Any) -> None:
    """Write each document's MinHash signature to a row of `found`, and how many shingles it has to `counts`.

    `drawn`: factors and summands of the permutations.
    """
    data, offsets = texts
    table, power, window = rule
    text = np.empty(longest(offsets) + 1, np.uint32)
    hashes = np.empty(longest(offsets) + 1, np.uint32)
    for n in range(len(offsets) - 1):
        length = folded_text(data, offsets[n], offsets[n + 1], table, text)
        counts[n] = shingle_hashes(text, length, power, window, hashes)
        least_under_permutations(hashes, counts[n], drawn[0], drawn[1], found[n])


def rule_of(window: tuple[int, int]) -> tuple[NDArray[np.uint32], NDArray[np.uint64], NDArray[np.int64]]:
    """What a run is, as the loops take it."""
    return folding(), powers(), np.array(window, np.int64)


def signatures(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], window: tuple[int, int], count: int
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """MinHash signatures (documents, count), and how many shingles each document has: 0 = shorter than one.

    `window`: letters and wide characters of a shingle.
    """
    documents = len(offsets) - 1
    found, counts = np.empty((documents, count), np.uint32), np.zeros(documents, np.int64)
    sign((data, offsets), rule_of(window), permutations(count), found, counts)
    return found, counts


@kernel(void(TEXTS, RULE, uint8[:, ::1]))
def draw(texts: Any, rule: Any, found: Any) -> None:
    """Write each document's sketch to a row of `found`, which comes as zeros."""
    data, offsets = texts
    table, power, window = rule
    text = np.empty(longest(offsets) + 1, np.uint32)
    hashes = np.empty(longest(offsets) + 1, np.uint32)
    least = np.empty(SKETCH_BINS, np.uint32)
    for n in range(len(offsets) - 1):
        length = folded_text(data, offsets[n], offsets[n + 1], table, text)
        count = shingle_hashes(text, length, power, window, hashes)
        least[:] = EMPTY
        for i in range(count):
            place = hashes[i] % np.uint32(SKETCH_BINS)
            least[place] = min(least[place], hashes[i])
        for place in range(SKETCH_BINS):
            if least[place] != EMPTY:
                # Not the leading bits, which are small in a minimum, nor the last, which name the bin.
                found[n, place] = np.uint8((least[place] >> np.uint32(10)) % np.uint32(255) + np.uint32(1))


def sketches(data: NDArray[np.uint8], offsets: NDArray[np.int64], window: tuple[int, int]) -> NDArray[np.uint8]:
    """One byte for each of SKETCH_BINS bins of the hash space: its smallest shingle hash cut to 1..255, 0 = none.

    Li, Owen and Zhang 2012. A document with fewer shingles than bins is kept nearly whole.
    """
    found = np.zeros((len(offsets) - 1, SKETCH_BINS), np.uint8)
    draw((data, offsets), rule_of(window), found)
    return found


@kernel(float64(BYTES, BYTES))
def resemblance(one: Any, other: Any) -> Any:
    """The Jaccard similarity that two sketches tell, corrected for bytes that are equal by chance."""
    filled = np.int64(0)
    equal = np.int64(0)
    both = np.int64(0)
    for n in range(SKETCH_BINS):
        filled += np.int64((one[n] | other[n]) != 0)
        both += np.int64((one[n] != 0) & (other[n] != 0))
        equal += np.int64((one[n] == other[n]) & (one[n] != 0))
    if filled == 0:
        return 0.0
    by_chance = (both - equal) / 254.0
    return max(0.0, (equal - by_chance) / filled)


@kernel(int64(I64S, int64))
def root(parents: Any, node: int) -> Any:
    """The first member of the node's cluster so far; paths are halved on the way."""
    while parents[node] != node:
        parents[node] = parents[parents[node]]
        node = parents[node]
    return node


SKETCHED = tuple_of((SKETCHES, I64S))  # sketches, and the place of each row's among them
JOINED = tuple_of((I64S, I64S))  # parents, partners


@kernel(float64(SKETCHED, int64, int64))
def told(sketched: Any, one: int, other: int) -> Any:
    """The similarity of two rows."""
    drawn, places = sketched
    return resemblance(drawn[places[one]], drawn[places[other]])


@kernel(void(U64S, I64S, SKETCHED, JOINED, float64))
def join_neighbours(keys: Any, order: Any, sketched: Any, joined: Any, least: float) -> None:
    """Join every row with those of the REACH rows before it in `order` that have its key and resemble it.

    `keys` (in that order) carry the band's key in the upper half. Smaller numbers become the parents; the partner of a
    row is the smallest one that it was joined with, itself to begin with.
    """
    parents, partners = joined
    for i in range(1, len(order)):
        j = i - 1
        while j >= 0 and i - j <= REACH and keys[j] >> np.uint64(32) == keys[i] >> np.uint64(32):
            one, other = root(parents, order[i]), root(parents, order[j])
            if one != other and told(sketched, order[i], order[j]) >= least:
                parents[max(one, other)] = min(one, other)
                later, earlier = max(order[i], order[j]), min(order[i], order[j])
                partners[later] = min(partners[later], earlier)
            j -= 1


@kernel(void(JOINED, SKETCHED, float64, I64S))
def gather_stars(joined: Any, sketched: Any, least: float, firsts: Any) -> None:
    """Write to `firsts` the row of its cluster that each one resembles, itself for those that resemble none before.

    A row is compared with the first MOST_STARS of its cluster that stay, then with its partner or what that one
    resembles; so nobody goes for a row that is unlike it, though a chain of others leads there.
    """
    parents, partners = joined
    following = np.full(len(parents), -1, np.int64)  # the next row that stays, of a cluster
    last = np.full(len(parents), -1, np.int64)  # the last one so far, by the cluster's first
    for n in range(len(parents)):
        first = root(parents, n)
        firsts[n] = n
        star, looked = first, 0
        while star >= 0 and star < n and looked < MOST_STARS:
            if told(sketched, n, star) >= least:
                firsts[n] = star
                break
            star = following[star]
            looked += 1
        if firsts[n] == n and looked == MOST_STARS:
            star = firsts[partners[n]]
            if star < n and told(sketched, n, star) >= least:
                firsts[n] = star
        if firsts[n] == n:
            if last[first] >= 0:
                following[last[first]] = n
            last[first] = n


KNOWN = tuple_of((READ_U64S, READ_I64S, SKETCHES))


@kernel(void(uint64[:, ::1], SKETCHES, KNOWN, I64S, F64S))
def find_nearest(keys: Any, drawn: Any, known: Any, best: Any, alike: Any) -> None:
    """Write to `best` the known document that resembles each one most among those with a key in common, and how much.

    `known`: the keys of known documents, in order, whose they are, and all sketches. Of a key that many have, the first
    REACH are looked at. `alike` comes with the least resemblance that counts; `best` keeps its -1 below it.
    """
    ordered, owners, sketched = known
    seen = np.zeros(len(sketched), np.int64)
    for n in range(len(keys)):
        for key in keys[n]:
            place = np.searchsorted(ordered, key)
            last = min(place + REACH, len(ordered))
            while place < last and ordered[place] == key:
                owner = owners[place]
                if seen[owner] != n + 1:
                    seen[owner] = n + 1
                    found = resemblance(drawn[n], sketched[owner])
                    if found > alike[n] or (found == alike[n] and (best[n] < 0 or owner < best[n])):
                        best[n], alike[n] = owner, found
                place += 1


def band_keys(signatures: NDArray[np.uint32], rows: int) -> NDArray[np.uint32]:
    """One key for each band of `rows` hashes (documents, bands); what is left over at the end stays unused."""
    documents, count = signatures.shape
    bands = signatures[:, : count // rows * rows].reshape(documents, count // rows, rows).astype(np.uint64)
    keys = np.zeros(bands.shape[:2], np.uint64)
    for n in range(rows):
        keys = (keys ^ bands[:, :, n]) * np.uint64(0xD6E8FEB86659FD93)
        keys ^= keys >> np.uint64(32)
    return keys.astype(np.uint32)
