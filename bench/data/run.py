"""Measure the data build and its peers on the same corpus, back to back, with the network off.

    python bench/data/corpus.py && python bench/data/peers.py      # once
    python bench/data/run.py [SUBJECT ...] [--mb 18] [--workers 1] [--repeat 3] [--note TEXT]

Subjects: inhouse (as shipped), inhouse-full (language from the full text, like the peers), juicer, juicer-character,
datatrove, datatrove-whitespace. In every round each subject runs once on 60 documents and once on the corpus: the
difference of the two is the speed without start-up. The table goes to standard output and every run to
WORK/results.jsonl. Input is cut into one file per worker before the clock starts: datatrove shares out files only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from measure import Measured, measure

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / ".inhouse" / "bench"
FEW = 60  # documents of the run that shows what starting costs
ENV = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1"}


@dataclass(frozen=True)
class Place:
    """Where a run finds its input and may write, and how many processes it may use."""

    work: Path
    source: Path  # a folder with one file per worker
    out: Path
    workers: int


@dataclass(frozen=True)
class Run:
    """One run of a subject and what came out of it."""

    subject: str
    documents: int
    mb: float
    workers: int
    rows: int
    measured: Measured


Command = Callable[[Place], tuple[list[str], dict[str, str]]]


def juicer(tokenization: str) -> Command:
    """data-juicer with shingles of words (`space`, its default) or of characters (what Chinese needs)."""

    def command(place: Place) -> tuple[list[str], dict[str, str]]:
        peer = place.work / "peers" / "juicer"
        recipe = (HERE / "peer_juicer.yaml").read_text(encoding="utf-8")
        config = place.out / "recipe.yaml"
        config.write_text(recipe.replace("tokenization: space", f"tokenization: {tokenization}"), encoding="utf-8")
        options = {"config": config, "dataset_path": place.source, "export_path": place.out / "kept.jsonl"}
        flags = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        run = [str(peer / "bin" / "dj-process"), *flags, "--np", str(place.workers)]
        return run, {"DATA_JUICER_CACHE_HOME": str(peer), "HF_HOME": str(place.out / "hf")}

    return command


def datatrove(words: str) -> Command:
    """datatrove with its default tokenizer (spaCy's for English) or with words split at white space."""

    def command(place: Place) -> tuple[list[str], dict[str, str]]:
        peer = place.work / "peers" / "datatrove"
        arguments = [str(place.source), str(place.out), str(place.workers), words]
        run = [str(peer / "bin" / "python"), str(HERE / "peer_datatrove.py"), *arguments]
        return run, {"HF_ASSETS_CACHE": str(peer / "assets"), "HF_HOME": str(place.out / "hf")}

    return command


def inhouse(sample: str) -> Command:
    """This build; `sample` is the number of characters that language identification sees, `null` for all."""

    def command(place: Place) -> tuple[list[str], dict[str, str]]:
        project = (HERE / "ours.yaml").read_text(encoding="utf-8")
        project = project.replace("SOURCE", f"{place.source}/*.jsonl").replace("SAMPLE", sample)
        (place.out / "inhouse.yaml").write_text(project, encoding="utf-8")
        python = place.work / "peers" / "inhouse" / "bin" / "python"
        run = [str(python), "-m", "inhouse", "data", "build", str(place.out / "inhouse.yaml"), "--json", "--offline"]
        return run, {"INHOUSE_WORKSPACE": str(place.out / "workspace"), "INHOUSE_THREADS": str(place.workers)}

    return command


SUBJECTS: dict[str, Command] = {
    "inhouse": inhouse("1000"),
    "inhouse-full": inhouse("null"),
    "juicer": juicer("space"),
    "juicer-character": juicer("character"),
    "datatrove": datatrove("english"),
    "datatrove-whitespace": datatrove("whitespace"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help="; ".join(SUBJECTS))
    parser.add_argument("--mb", type=int, default=18, choices=(18, 200, 800))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--note", default="", help="what else to remember of this measurement")
    options = parser.parse_args()
    options.subjects = options.subjects or list(SUBJECTS)
    if unknown := set(options.subjects) - set(SUBJECTS):
        parser.error(f"no such subject: {', '.join(sorted(unknown))}")
    whole = options.work / "corpus" / f"{options.mb}.jsonl"
    runs: list[Run] = []
    print(f"{machine()}; {whole.name}, {options.workers} workers, n={options.repeat}. {options.note}", flush=True)
    for number in range(options.repeat + 1):  # round 0 fills the disk cache and compiles; it does not count
        for subject in options.subjects:
            for most in [FEW] if number == 0 else [FEW, None]:
                run = once(subject, whole, most, options)
                print(f"round {number} load {os.getloadavg()[0]:.1f}: {shown(run)}", flush=True)
                if number:
                    runs.append(run)
                    remember(run, options)
    print(table(runs))


def once(subject: str, whole: Path, most: int | None, options: argparse.Namespace) -> Run:
    """Run a subject on the first documents of the corpus, or all of them, in a fresh folder."""
    folder = options.work / "runs" / subject
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in").mkdir(parents=True)
    (folder / "out").mkdir()
    documents, mb = cut(whole, folder / "in", options.workers, most)
    place = Place(work=options.work, source=folder / "in", out=folder / "out", workers=options.workers)
    command, env = SUBJECTS[subject](place)
    log = folder / "log.txt"
    try:
        measured = measure([*no_network(), *command], {**surroundings(), **env}, place.out, log)
    except subprocess.CalledProcessError as error:
        tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        sys.exit(f"{subject} ended with {error.returncode}\n{tail}")
    return Run(subject, documents, round(mb, 3), options.workers, kept(place.out, log), measured)


def cut(whole: Path, folder: Path, workers: int, most: int | None) -> tuple[int, float]:
    """Write the documents into one file per worker, in turn; their number and MB of text."""
    count, size = 0, 0
    files = [(folder / f"{number:02}.jsonl").open("wb") for number in range(workers)]
    with whole.open("rb") as f:
        for line in f:
            if count == most:
                break
            files[count % workers].write(line)
            size += len(json.loads(line)["text"].encode())
            count += 1
    for file in files:
        file.close()
    return count, size / 1e6


def surroundings() -> dict[str, str]:
    """The environment of every subject; modules keep what they were compiled to, as after a user's installation."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | ENV


def no_network() -> list[str]:
    """What puts a command into a network namespace of its own, with nothing in it."""
    for prefix in (["unshare", "-n"], ["unshare", "-rn"]):
        if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix
    print("no network namespace here: only the HF_* variables keep the peers off the network", file=sys.stderr)
    return []


def kept(out: Path, log: Path) -> int:
    """Rows that a run kept: lines of a peer's output, or what inhouse says in its result."""
    if (out / "workspace").exists():
        text = log.read_text(encoding="utf-8")
        facts = json.loads(text[text.index("{") :])["facts"]
        return sum(next(iter(facts.values()))["rows"].values())
    files = [out / "kept.jsonl"] if (out / "kept.jsonl").exists() else sorted((out / "out").glob("*.jsonl"))
    return sum(len(file.read_bytes().splitlines()) for file in files)


def table(runs: list[Run]) -> str:
    """Medians of the runs, a line per subject, in Markdown."""
    lines = [
        "| subject | MB per CPU-s without start-up | CPU-s | wall s | start-up CPU-s | peak MB | rows kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for subject in dict.fromkeys(run.subject for run in runs):
        few = [run for run in runs if run.subject == subject and run.documents == FEW]
        full = [run for run in runs if run.subject == subject and run.documents != FEW]
        pairs = zip(full, few, strict=True)
        speeds = [(a.mb - b.mb) / (a.measured.cpu_s - b.measured.cpu_s) for a, b in pairs]
        cells = [
            subject,
            spread(speeds, 2),
            spread([run.measured.cpu_s for run in full], 1),
            spread([run.measured.wall_s for run in full], 1),
            spread([run.measured.cpu_s for run in few], 1),
            spread([run.measured.peak_mb for run in full], 0),
            f"{full[0].rows} of {full[0].documents}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    """The median with its range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def shown(run: Run) -> str:
    """A run in a line."""
    m = run.measured
    return (
        f"{run.subject} {run.mb:.1f} MB: {m.wall_s:.1f} s, {m.cpu_s:.1f} CPU-s, {m.peak_mb:.0f} MB, "
        f"{run.rows} of {run.documents} rows"
    )


def remember(run: Run, options: argparse.Namespace) -> None:
    """Append a run to results.jsonl."""
    facts = {"time": round(time.time()), "machine": machine(), "note": options.note, "load": os.getloadavg()[0]}
    with (options.work / "results.jsonl").open("a", encoding="utf-8") as f:
        f.write(json.dumps({**facts, **asdict(run)}) + "\n")


def machine() -> str:
    """Processor, cores and commit."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return f"{model}, {os.cpu_count()} cores, commit {commit.stdout.strip()}"


if __name__ == "__main__":
    main()
