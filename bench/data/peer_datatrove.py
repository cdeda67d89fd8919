"""The recipe of the benchmark for datatrove 0.10.1, run by its environment's own Python.

    python peer_datatrove.py INPUT_FOLDER WORK_FOLDER WORKERS WORDS [minhash | pii]

INPUT_FOLDER holds one .jsonl per worker. WORDS: `english`, the tokenizer that datatrove takes unless told otherwise
(spaCy), `whitespace`, which splits at white space, or another language's code. Thresholds are wide, so that nearly
every document passes through every step. The last argument runs that step alone. What is kept lies in WORK_FOLDER/out.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.exact_dedup import (
    ExactDedupConfig,
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter, LanguageFilter
from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter
from datatrove.pipeline.formatters.base import BaseFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.word_tokenizers import WhitespaceTokenizer

Stage = tuple[int, list[PipelineStep]]  # number of tasks, steps
BUCKETS = 14
SPACES = re.compile(r"[^\S\n]+")
BLANK_LINES = re.compile(r"\n{3,}")


class Spaces(BaseFormatter):
    """Runs of spaces made one, at most one blank line: datatrove has no step for white space."""

    name = "spaces"

    def format(self, text: str) -> str:
        return BLANK_LINES.sub("\n\n", SPACES.sub(" ", text)).strip()


def text_of(document: Document) -> str:
    """What exact deduplication compares."""
    return document.text


def clean(source: str, work: Path, exact: ExactDedupConfig, words: str | WhitespaceTokenizer) -> list[PipelineStep]:
    """From the input to cleaned documents and their exact signatures."""
    return [
        JsonlReader(source, id_key="name"),
        FTFYFormatter(normalization="NFC"),
        Spaces(),
        GopherQualityFilter(
            min_doc_words=5,
            max_doc_words=10_000_000,
            min_avg_word_length=None,
            max_avg_word_length=None,
            max_symbol_word_ratio=1.0,
            max_bullet_lines_ratio=None,
            max_ellipsis_lines_ratio=None,
            max_non_alpha_words_ratio=0.2,
            min_stop_words=None,
            language=words,
        ),
        GopherRepetitionFilter(
            dup_line_frac=0.9,
            dup_para_frac=0.9,
            dup_line_char_frac=0.9,
            dup_para_char_frac=0.9,
            top_n_grams=((2, 0.9), (3, 0.9), (4, 0.9)),
            dup_n_grams=tuple((n, 0.9) for n in range(5, 11)),
            language=words,
        ),
        LanguageFilter(languages=None, language_threshold=0.3),
        PIIFormatter(),
        JsonlWriter(str(work / "cleaned"), compression=None),
        ExactDedupSignature(str(work / "exact"), exact),
    ]


def dedup(first: list[PipelineStep], work: Path, words: str | WhitespaceTokenizer, count: int) -> list[Stage]:
    """The four stages of MinHash over what `first` reads."""
    minhash = MinhashConfig(num_buckets=BUCKETS, hashes_per_bucket=8)
    signed, buckets, clusters = (str(work / name) for name in ("signed", "buckets", "clusters"))
    return [
        (count, [*first, MinhashDedupSignature(signed, minhash, language=words)]),
        (BUCKETS, [MinhashDedupBuckets(signed, buckets, config=minhash)]),
        (1, [MinhashDedupCluster(buckets, clusters, config=minhash)]),
        (count, [*first, MinhashDedupFilter(clusters), JsonlWriter(str(work / "out"), compression=None)]),
    ]


def recipe(source: str, work: Path, words: str | WhitespaceTokenizer, count: int) -> list[Stage]:
    """All steps: number of tasks and steps of every stage."""
    exact = ExactDedupConfig(content_getter=text_of)
    cleaned = [JsonlReader(str(work / "cleaned")), ExactDedupFilter(str(work / "twice"), exact)]
    return [
        (count, clean(source, work, exact, words)),
        (1, [ExactFindDedups(str(work / "exact"), str(work / "twice"), exact)]),
        *dedup(cleaned, work, words, count),
    ]


def main() -> None:
    source, folder, workers, chosen, *only = sys.argv[1:]
    work, count = Path(folder), int(workers)
    words = WhitespaceTokenizer() if chosen == "whitespace" else {"english": "eng"}.get(chosen, chosen)
    reader, writer = JsonlReader(source, id_key="name"), JsonlWriter(str(work / "out"), compression=None)
    if only == ["minhash"]:
        stages = dedup([reader], work, words, count)
    elif only == ["pii"]:
        stages = [(count, [reader, PIIFormatter(), writer])]
    else:
        stages = recipe(source, work, words, count)
    for number, (tasks, steps) in enumerate(stages):
        log = str(work / "logs" / str(number))
        LocalPipelineExecutor(steps, tasks=tasks, workers=min(tasks, count), logging_dir=log).run()


if __name__ == "__main__":
    main()
