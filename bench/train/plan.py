"""Set beside each other what a plan foretells of a training and what is measured: memory by part, and speed.

    python bench/train/plan.py [--work .inhouse/bench] [--models 30M smollm2 300M] [--methods lora full] [--steps 3]

Each training is a process of its own: it plans (two measured steps of about 512 tokens at most), then trains `--steps`
steps of the real loop with batches of `--size` and measures. Seconds are CPU seconds of one thread, so that neighbours
on the machine do not count, from the loop's first step to its end, the checkpoint there included; what building the
loop took before is told apart. `30M` and `300M` are Llamas with random weights and SmolLM2's tokenizer; `smollm2` is
the real one.
Rows: `bench/train/rows.py`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from model import WORK, model_folder

from inhouse.core.settings import child_environment

SHAPES = {  # hidden, feed-forward, layers, heads, heads of keys and values
    "30M": (288, 768, 12, 8, 4),
    "300M": (896, 2432, 28, 14, 7),
}
PARTS = ("process", "weights", "gradients", "optimizer", "activations", "logits", "peak")
SEED = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--models", nargs="+", default=["30M", "smollm2", "300M"])
    parser.add_argument("--methods", nargs="+", default=["lora"])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "METHOD"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked, *asked.one)))
        return
    command = [
        sys.executable,
        __file__,
        "--work",
        str(asked.work),
        "--steps",
        str(asked.steps),
        "--size",
        str(asked.size),
    ]
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "INHOUSE_THREADS")}
    for model in asked.models:
        folder_of(asked.work, model)
        for method in asked.methods:
            done = subprocess.run(
                [*command, "--one", model, method],
                env=child_environment(offline=True) | threads,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                sys.exit(done.stderr)
            show(model, method, json.loads(done.stdout.splitlines()[-1]))


def show(model: str, method: str, found: dict) -> None:
    """The split and the speed, foretold and measured."""
    print(f"\n{model} {method}: {found['parameters']:,} parameters, {found['tokens']} tokens in {found['steps']} steps")
    print(f"  {'MB':<12}{'predicted':>12}{'measured':>12}{'difference':>12}")
    for part in PARTS:
        told, seen = (found[side][part] / 1e6 for side in ("foretold", "measured"))
        print(f"  {part:<12}{told:>12.1f}{seen:>12.1f}{(told / seen - 1 if seen else 0):>12.1%}")
    told, seen = found["foretold_s"], found["measured_s"]
    print(f"  {'CPU seconds':<12}{told:>12.1f}{seen:>12.1f}{told / seen - 1:>12.1%}", end="")
    saved, built = f"{found['checkpoints_s']:.1f}", f"{found['built_s']:.1f}"
    print(f"    {saved} of these foretold for checkpoints; {built} before the first step", flush=True)


def one(asked: argparse.Namespace, model: str, method: str) -> dict:
    """Plan and train in this process."""
    from inhouse.core.run import Events, release_memory, reset_peak_memory
    from inhouse.train import memory, watch
    from inhouse.train.loop import train
    from inhouse.train.params import TrainParams
    from inhouse.train.planning import plan_training
    from inhouse.train.setup import Place, job_for, prepare
    from inhouse.train.watch import Watch

    begun: list[float] = []

    class Timed(Watch):
        """Sees when the first step begins."""

        def on_train_begin(self, *settings: Any, **more: Any) -> None:
            super().on_train_begin(*settings, **more)
            begun.append(time.process_time())

    watch.Watch = Timed
    memory.CLOCK = time.process_time
    params = TrainParams.model_validate(
        {
            "method": method,
            "learning_rate": 1e-5 if method == "full" else 1e-4,
            "max_steps": asked.steps,
            "per_device_train_batch_size": asked.size,
            "save_steps": 10 * asked.steps,
            "gradient_checkpointing": False,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        ready = prepare(params, inputs(asked.work, model, Path(folder)), SEED, Events())
        plan = plan_training(ready, params, SEED)
        release_memory()
        held = memory.held_by(ready.loaded.model)
        reset_peak_memory()
        started = time.process_time()
        trained = train(ready.loaded.model, params, job_for(ready, params, SEED, Place(Path(folder), Events())))
        seconds = time.process_time() - begun[0]
        measured = memory.measured_split(held, plan.split.logits)
    return {
        "parameters": plan.parameters,
        "tokens": trained.tokens,
        "steps": trained.steps,
        "foretold": plan.split.model_dump(),
        "measured": measured.model_dump(),
        "foretold_s": plan.run_s,
        "measured_s": seconds,
        "checkpoints_s": plan.checkpoints * plan.checkpoint_s,
        "built_s": begun[0] - started,
    }


def inputs(work: Path, model: str, folder: Path) -> dict:
    """The model and the rows as the stage gets them."""
    from inhouse.core.artifact import Artifact
    from inhouse.core.protocols import Input
    from inhouse.core.rows import Row
    from inhouse.dataset import write_rows

    lines = (work / "train" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "rows").mkdir()
    write_rows(folder / "rows", "train", [Row.model_validate(json.loads(line)) for line in lines])
    header = {"format": "safetensors", "main": ".", "name": model}
    record = Artifact(
        id=model, kind="model", stage="select", node="base", stage_version="1", recipe="", params={}, created="",
        facts={"model": header},
    )  # fmt: skip
    return {"base": Input(record, folder_of(work, model)), "dataset": Input(record, folder / "rows")}


def folder_of(work: Path, model: str) -> Path:
    """The folder of a model, written when it is not there yet."""
    if model not in SHAPES:
        return model_folder(work, "fp32")
    folder = work / "train" / f"random-{model}"
    if not (folder / "model.safetensors").exists():
        build(folder, model_folder(work, "fp32"), *SHAPES[model])
    return folder


def build(folder: Path, like: Path, hidden: int, inner: int, *rest: int) -> None:
    """A Llama of this shape with random weights, and the tokenizer of another model."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    layers, heads, key_heads = rest
    known = AutoConfig.from_pretrained(like)
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=known.vocab_size,
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            eos_token_id=known.eos_token_id,
        )
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(like).save_pretrained(folder)


if __name__ == "__main__":
    main()
