"""Forms of English and Chinese sentences that say the same: what to look for, and what may stand there instead."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Literal

from inhouse.data.scripts import HAN_CLASS

Rule = Literal["contractions", "phrases", "requests", "particles", "stops"]


@dataclass(frozen=True, slots=True)
class Variant:
    """A pattern, and templates of its match: one of them, by lot, takes its place.

    A text (in lower case) without any of `needs` cannot match and is not searched, which is most of the time saved.
    """

    needs: tuple[str, ...]
    finds: re.Pattern[str]
    gives: tuple[str, ...]


SUBJECTS = (
    r"(?:I|you|he|she|it|we|they|there|this|that|these|those|the|an?|any\w*|every\w*|some\w*|no\w*|my|your|our|their"
    r"|his|her|its|one|all|people|only)\b"
)
# A question has its subject between verb and negation: "Isn't Tom here" is never "Is not Tom here".
ASKED = "".join(f"(?<!\\b{word} )" for word in ("why", "Why", "how", "How", "who", "Who", "what", "What", "and", "so"))
STATED = r"(?<=[a-z] )" + ASKED
AUXILIARIES = "does|did|is|are|was|were|have|has|had|could|would|should|must"
# What follows shows that the clause goes on: "who I am." has no short form.
GOES_ON = (
    r"(?= (?:an?|the|not|very|also|too|so|really|quite|still|already|always|never|in|on|at|my|your|his|her|our|their"
    r"|about|going|trying|looking)\b)"
)
WHOLE = "".join(f"(?<!\\b{word} )" for word in ("than", "as", "what", "who", "how", "where", "which", "whatever"))
VERBS = (
    "tell|show|help|explain|give|send|check|find|change|update|cancel|confirm|recommend|suggest|describe|list|write"
    "|translate|summari[sz]e|provide|call|open|close|book|order|add|remove|create|make|fix|resend|refund|track|look"
    "|share|compare|schedule|remind|transfer|arrange|review|correct|rewrite|convert|calculate"
)
BEGIN = r"(?:\A|(?<=[.!?] )|(?<=\n))"
END = r"(?=\s*\Z)"
ZH_BEGIN = r"(?:\A|(?<=[。！？\n]))"
ZH_ASKS = r"什么|怎么|怎样|如何|哪|谁|多少|多久|几|为何"
APOSTROPHE = "['’]"
# English phrases: left may become right, and the other way round when the third is true.
PHRASES = (
    ("for example", "for instance", True),
    ("in addition,", "additionally,", True),
    ("as a result,", "consequently,", True),
    ("in order to", "to", False),
    ("due to the fact that", "because", False),
    ("a large number of", "many", False),
    ("a lot of", "lots of", True),
    ("at present", "currently", False),
    ("thanks a lot", "thank you very much", False),
    ("thank you very much", "many thanks", False),
    ("with regard to", "regarding", True),
    ("prior to", "before", False),
)
ZH_PHRASES = (
    ("能否", rf"能否(?={HAN_CLASS})", "能不能"),
    ("可否", rf"可否(?={HAN_CLASS})", "能否"),
    ("能不能", rf"能不能(?=[^够？。，\s]{HAN_CLASS})", "能否"),
    ("可不可以", rf"(?<![无不])可不可以(?={HAN_CLASS})", "能不能"),
    ("是否", rf"是否(?={HAN_CLASS})", "是不是"),
    ("如何", rf"(?<![论管任])如何(?=(?!是好|了|的|呢){HAN_CLASS})", "怎么"),
    ("怎样", rf"(?<![论管任])怎样(?=(?!的|了|呢|才好|啊){HAN_CLASS})", "如何"),
)


@cache
def variants() -> dict[Rule, tuple[Variant, ...]]:
    """The variants of each rule, compiled."""
    return {
        "contractions": _contractions(),
        "phrases": _phrases(),
        "requests": (*_english_requests(), *_chinese_requests()),
        "particles": _particles(),
        "stops": _stops(),
    }


def _variant(needs: str, finds: str, *gives: str) -> Variant:
    return Variant(tuple(needs.split("|")), re.compile(finds), gives)


def _word(needs: str, finds: str, *gives: str) -> Variant:
    """A variant of whole English words; an apostrophe in `needs` stands for the curved one too."""
    both = needs if "'" not in needs else f"{needs}|{needs.replace(chr(39), '’')}"
    return _variant(both, rf"(?<![\w'’-]){finds}(?![\w'’-])", *gives)


def _contractions() -> tuple[Variant, ...]:
    no_subject = f"(?! {SUBJECTS})"
    return (
        _word("don't", rf"([Dd])on{APOSTROPHE}t{no_subject}", r"\1o not"),
        _word("n't", rf"{STATED}({AUXILIARIES})n{APOSTROPHE}t{no_subject}", r"\1 not"),
        _word("can't", rf"{STATED}can{APOSTROPHE}t{no_subject}", "cannot"),
        _word("won't", rf"{STATED}won{APOSTROPHE}t{no_subject}", "will not"),
        _word("do not", rf"([Dd])o not{no_subject}", r"\1on't"),
        _word(" not", rf"{STATED}({AUXILIARIES}) not{no_subject}", r"\1n't"),
        _word("cannot", rf"{STATED}cannot{no_subject}", "can't"),
        _word("will not", rf"{STATED}will not{no_subject}", "won't"),
        _word("i am", rf"{WHOLE}I am{GOES_ON}", "I'm"),
        _word("you are|we are|they are", rf"{WHOLE}([Yy]ou|[Ww]e|[Tt]hey) are{GOES_ON}", r"\1're"),
        _word("it is|that is|there is|he is", rf"{WHOLE}([Ii]t|[Tt]hat|[Tt]here|[Hh]e|[Ss]he) is{GOES_ON}", r"\1's"),
        _word("i'm", rf"I{APOSTROPHE}m", "I am"),
        _word("'re", rf"([Yy]ou|[Ww]e|[Tt]hey){APOSTROPHE}re", r"\1 are"),
        _word("'s", rf"([Ii]t|[Tt]hat|[Tt]here){APOSTROPHE}s{GOES_ON}", r"\1 is"),
        _word("'ll", rf"(I|[Yy]ou|[Ww]e|[Tt]hey){APOSTROPHE}ll", r"\1 will"),
        _word("'ve", rf"(I|[Yy]ou|[Ww]e|[Tt]hey){APOSTROPHE}ve", r"\1 have"),
    )


def _phrases() -> tuple[Variant, ...]:
    pairs = [(left, right) for left, right, _ in PHRASES] + [(right, left) for left, right, both in PHRASES if both]
    found = []
    for left, right in pairs:
        comma = r"(?=,)" if left.endswith(",") else ""
        left, right = left.removesuffix(","), right.removesuffix(",")
        found.append(_word(left, re.escape(left) + comma, right))
        found.append(_word(left, re.escape(left[0].upper() + left[1:]) + comma, right[0].upper() + right[1:]))
    return (*found, *(_variant(needs, finds, gives) for needs, finds, gives in ZH_PHRASES))


def _english_requests() -> tuple[Variant, ...]:
    verb = rf"(?:{VERBS})\b"
    return (
        _word("can you", rf"{BEGIN}Can you(?= (?:please )?{verb})", "Could you"),
        _word("could you", rf"{BEGIN}Could you(?= (?:please )?{verb})", "Can you"),
        _variant(
            "please ", rf"{BEGIN}Please ({verb}[^.!?:;\n]{{3,120}})(?:\.(?= |\n|\Z)|(?=\n|\Z))", r"Could you please \1?"
        ),
        _variant(
            "you please ", rf"{BEGIN}(?:Could|Can) you please ({verb}[^.!?:;\n]{{3,120}})\?(?= |\n|\Z)", r"Please \1."
        ),
        _word("tell me", rf"{BEGIN}Tell me", "Please tell me"),
        _word("show me", rf"{BEGIN}Show me", "Please show me"),
        _word("give me", rf"{BEGIN}Give me", "Please give me"),
        _word("i want to", rf"{BEGIN}I want to", "I would like to", "I'd like to"),
        _word("i would like to", rf"{BEGIN}I would like to", "I'd like to", "I want to"),
        _word("i'd like to", rf"{BEGIN}I{APOSTROPHE}d like to", "I would like to", "I want to"),
        _word("how do i", rf"{BEGIN}How do I", "How can I"),
        _word("how can i", rf"{BEGIN}How can I", "How do I"),
        _word("what is", rf"{BEGIN}What is(?= (?:the|your|my|an?)\b)", "What's"),
        _word("what's", rf"{BEGIN}What{APOSTROPHE}s(?= (?:the|your|my|an?)\b)", "What is"),
    )


def _chinese_requests() -> tuple[Variant, ...]:
    asks = "如何|怎么|怎样|哪里|哪些|什么时候|有没有|能否|是否|能不能|可不可以|可以|为什么"
    return (
        _variant("请问", rf"{ZH_BEGIN}请问[，,]?(?=[^。！？?\n]+[？?])", ""),
        _variant(asks, rf"{ZH_BEGIN}(?=(?:{asks})[^。！？?\n]+[？?])", "请问"),
        _variant("帮我", rf"{ZH_BEGIN}(?:请|麻烦)?帮我(?={HAN_CLASS})", "请帮我", "麻烦帮我", "帮我"),
        _variant("麻烦", rf"{ZH_BEGIN}麻烦(?=[你您]{HAN_CLASS})", "请"),
        _variant("我想知道", rf"{ZH_BEGIN}我想知道(?={HAN_CLASS})", "我想了解", "我想问一下"),
        _variant("我想问一下", rf"{ZH_BEGIN}我想问一下(?={HAN_CLASS})", "我想知道"),
        _variant("谢谢", rf"(?<=[，。！？,!? \n])谢谢(?=[。！!]?{END})", "多谢", "非常感谢"),
    )


def _particles() -> tuple[Variant, ...]:
    return (
        _variant("可以吗", r"可以吗(?=[？?])", "行吗"),
        _variant("行吗", r"(?<![可还不])行吗(?=[？?])", "可以吗"),
        _variant("吗", rf"(?<={HAN_CLASS})吗(?=[？?])", "么"),
        _variant("呢", rf"((?:{ZH_ASKS})[^。！？?，,\n]{{0,80}})呢(?=[？?])", r"\1"),
        _variant(ZH_ASKS, rf"((?:{ZH_ASKS})[^。！？?，,\n]{{0,80}}(?![吗呢吧啊么了呀]){HAN_CLASS})(?=[？?])", r"\1呢"),
    )


def _stops() -> tuple[Variant, ...]:
    """Only where the text is one sentence: a longer one would hardly be another."""
    return (
        _variant(".", r"(\A[^.!?\n]+[a-z])\.(?=\s*\Z)", r"\1"),
        _variant("!", r"(\A[^.!?\n]+[a-z])!(?=\s*\Z)", r"\1."),
        _variant("。", rf"(\A[^。！？\n]+{HAN_CLASS})。(?=\s*\Z)", r"\1"),
        _variant("！", rf"(\A[^。！？\n]+{HAN_CLASS})！(?=\s*\Z)", r"\1。"),
    )
