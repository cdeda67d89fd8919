"""Texts damaged by wrong decodings, made by seeded code: (damaged, the clean text, how)."""

from __future__ import annotations

import random
from collections.abc import Callable

SENTENCES: dict[str, list[str]] = {
    "en": [
        "The café on the corner doesn’t open before nine — but it’s worth the wait.",
        "“Naïve,” she said, “is not the same as simple.”",
        "A cup of tea costs £3.50 today, and €4 tomorrow…",
        "The résumé was 12 pages long; nobody read past the 2nd.",
        "Plain sentences without any special letter stay as they are.",
        "It was 23 °C ± 2 in the shade, ½ a degree above the mean.",
    ],
    "de": [
        "Der Bär überquerte die Straße, während Köln noch schlief.",
        "Größe und Länge müssen übereinstimmen, sonst hört das Gerät auf.",
        "„Schön“, sagte er, „das genügt für heute.“",
        "Äpfel, Öl und Übermut gehören nicht in denselben Korb.",
        "Die Prüfung dauert fünf Stunden; danach gibt es Süßes.",
    ],
    "fr": [
        "L’été dernier, les élèves ont visité le château de Fontainebleau.",
        "Voilà où ça mène : un cœur brisé et une âme en peine.",
        "« Être ou ne pas être », répétait-il à voix basse.",
        "Le garçon a mangé des crêpes à la crème chez sa grand-mère.",
        "Où êtes-vous né ? À Orléans, près de l’église Saint-Aignan.",
    ],
    "ru": [
        "Съешь же ещё этих мягких французских булок, да выпей чаю.",
        "Погода сегодня хорошая, и мы пойдём гулять в парк.",
        "«Война и мир» — роман, который читают в каждой школе.",
        "Программа завершилась с ошибкой № 5: файл не найден.",
        "Москва, Санкт-Петербург и Новосибирск — крупные города.",
    ],
    "zh": [
        "今天天气很好，我们一起去公园散步吧。",
        "“学而时习之，不亦说乎？”这是《论语》的第一句。",
        "请把文件保存为 UTF-8 编码，否则会出现乱码。",
        "价格是 ￥128.00（含税），数量：３件；共 ３８４ 元。",
        "他说：“明天见！”然后就走了……",
    ],
}


def _wrong(encoding: str) -> Callable[[str], str]:
    """UTF-8 read as a one-byte encoding; with ftfy's sloppy variants every byte has a character."""
    import ftfy  # noqa: F401  (registers the sloppy encodings)

    return lambda text: text.encode("utf-8").decode(encoding)


def _lossy(text: str) -> str:
    return text.encode("utf-8").decode("windows-1252", errors="replace")


def _spaced(text: str) -> str:
    return text.encode("utf-8").decode("latin-1").replace("\xa0", " ")


def _gbk_as_latin(text: str) -> str:
    return text.encode("gb18030").decode("latin-1")


def _utf8_as_gbk(text: str) -> str:
    return text.encode("utf-8").decode("gb18030", errors="replace")


def _cyrillic_as_latin(text: str) -> str:
    return text.encode("windows-1251", errors="replace").decode("sloppy-windows-1252")


DAMAGES: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "latin-1": _wrong("latin-1"),
    "cp1252": _wrong("sloppy-windows-1252"),
    "cp1251": _wrong("sloppy-windows-1251"),
    "cp1250": _wrong("sloppy-windows-1250"),
    "macroman": _wrong("macroman"),
    "cp437": _wrong("cp437"),
    "lossy": _lossy,
    "spaced": _spaced,
    "doubled": lambda text: _wrong("sloppy-windows-1252")(_wrong("sloppy-windows-1252")(text)),
    "doubled-latin": lambda text: _wrong("latin-1")(_wrong("latin-1")(text)),
    "gbk-as-latin": _gbk_as_latin,
    "utf8-as-gbk": _utf8_as_gbk,
    "cyrillic-as-latin": _cyrillic_as_latin,
}


def cases(seed: int, count: int) -> list[tuple[str, str, str]]:
    """(damaged, clean, name): one to five sentences of one or two languages; some damaged only in part."""
    lot = random.Random(seed)
    made = []
    for number in range(count):
        name = list(DAMAGES)[number % len(DAMAGES)]
        languages = lot.sample(sorted(SENTENCES), lot.choice([1, 1, 2]))
        sentences = [lot.choice(SENTENCES[lot.choice(languages)]) for _ in range(lot.randint(1, 5))]
        joint = lot.choice([" ", "\n", "\n\n"])
        if lot.random() < 0.4:
            damaged = [DAMAGES[name](s) if lot.random() < 0.5 else s for s in sentences]
        else:
            damaged = [DAMAGES[name](s) for s in sentences]
        made.append((joint.join(damaged), joint.join(sentences), name))
    return made


def clean(seed: int, count: int) -> list[str]:
    """Undamaged texts of one to eight sentences."""
    lot = random.Random(seed)
    every = [sentence for sentences in SENTENCES.values() for sentence in sentences]
    return [lot.choice([" ", "\n"]).join(lot.choices(every, k=lot.randint(1, 8))) for _ in range(count)]
