"""Parity must notice damage: a wrong tensor, another chat template, numbers that are none."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from inhouse.compress.parity import (
    Bounds,
    Comparison,
    ParityParams,
    bounds_of,
    choose_rows,
    figures_of,
    judge,
    kl_of_top,
    measure,
    template_error,
)
from inhouse.compress.quantise import quantise
from inhouse.core.errors import UserError
from inhouse.core.protocols import Context, Input
from inhouse.core.rows import Row
from inhouse.dataset import read_rows

PARAMS = ParityParams(prompts=3, tokens=3)


def rows_of(context: Context) -> list[Row]:
    return choose_rows(list(read_rows(context.inputs["dataset"].path, "test")), PARAMS.prompts)


def exported(context: Context, converted: Path, as_input: Callable[..., Input]) -> tuple[Path, Input]:
    target = context.out / "m.gguf"
    quantise(converted, target, "q8_0", {}, lambda done, total: None)
    return target, as_input(context.out, "m.gguf", "gguf")


def test_parity_with_one_tensor_scaled_fails(context: Context, converted: Path, as_input: Callable[..., Input]) -> None:
    from gguf import GGUFReader

    file, model = exported(context, converted, as_input)
    models = (None, context.inputs["tuned"], model)
    judge(measure(rows_of(context), models, PARAMS, context.events), PARAMS, bounds_of(PARAMS, False))

    reader = GGUFReader(file, "r+")
    tensor = next(t for t in reader.tensors if t.name == "output_norm.weight")
    tensor.data[:] *= 30
    reader.data.flush()
    with pytest.raises(UserError) as error:
        judge(measure(rows_of(context), models, PARAMS, context.events), PARAMS, bounds_of(PARAMS, False))
    assert error.value.code == "compress.parity_logits"


def test_parity_with_another_chat_template_fails_at_the_token_where_they_part(
    context: Context, converted: Path, as_input: Callable[..., Input]
) -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}assistant:"
    target = context.out / "m.gguf"
    quantise(converted, target, "q8_0", {"tokenizer.chat_template": template}, lambda done, total: None)
    models = (None, context.inputs["tuned"], as_input(context.out, "m.gguf", "gguf"))
    with pytest.raises(UserError) as error:
        measure(rows_of(context), models, PARAMS, context.events)
    assert error.value.code == "compress.parity_template"
    assert error.value.facts["position"] == 0


def test_parity_of_an_export_with_the_template_of_another_tokenizer_config_fails(
    context: Context, converted: Path, as_input: Callable[..., Input], tmp_path: Path
) -> None:
    _, model = exported(context, converted, as_input)
    folder = tmp_path / "other"
    shutil.copytree(context.inputs["tuned"].path, folder)
    config = folder / "merged" / "tokenizer_config.json"
    changed = json.loads(config.read_text(encoding="utf-8"))
    (folder / "merged" / "chat_template.jinja").unlink(missing_ok=True)
    changed["chat_template"] = "{% for m in messages %}{{ '<|im_start|>' + m['content'] }}{% endfor %}"
    config.write_text(json.dumps(changed), encoding="utf-8")
    models = (None, as_input(folder, "merged", "safetensors"), model)
    with pytest.raises(UserError) as error:
        measure(rows_of(context), models, PARAMS, context.events)
    assert error.value.code == "compress.parity_template"


def comparison(**changed: object) -> Comparison:
    values = {
        "row": "r1", "ids_equal": True, "max_difference": 0.1, "mean_difference": 0.05, "kl": 0.001,
        "answer_equal": True, "equal_tokens": 1.0, "adapter_difference": 0.0,
    }  # fmt: skip
    return Comparison(**{**values, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({}, None),
        ({"max_difference": math.nan}, "compress.parity_logits"),
        ({"kl": math.inf}, "compress.parity_logits"),
        ({"adapter_difference": 0.5}, "compress.parity_adapter"),
        ({"adapter_difference": math.nan}, "compress.parity_adapter"),
        ({"answer_equal": False}, "compress.parity_greedy"),
    ],
)
def test_judge_stops_at_broken_bounds_and_at_what_is_no_number(changed: dict[str, object], code: str | None) -> None:
    bounds = Bounds(max_logit_difference=1.0, kl=0.1, greedy_agreement=0.9)
    compared = [comparison(), comparison(row="r2", **changed)]
    if code is None:
        judge(compared, PARAMS, bounds)
        return
    with pytest.raises(UserError) as error:
        judge(compared, PARAMS, bounds)
    assert error.value.code == code
    assert error.value.facts["row"] == "r2"


def test_kl_over_all_tokens_is_the_textbook_value() -> None:
    p, q = [0.5, 0.3, 0.2], [0.4, 0.4, 0.2]
    by_hand = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    top = {at: math.log(a) for at, a in enumerate(p)}
    assert kl_of_top(top, {at: math.log(b) for at, b in enumerate(q)}) == pytest.approx(by_hand, abs=1e-9)


def test_kl_over_the_top_counts_the_rest_as_one_and_is_a_lower_bound() -> None:
    p, q = [0.5, 0.3, 0.2], [0.4, 0.4, 0.2]
    whole = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    merged = 0.5 * math.log(0.5 / 0.4) + 0.5 * math.log(0.5 / 0.6)
    found = kl_of_top({0: math.log(0.5)}, {0: math.log(0.4)})
    assert found == pytest.approx(merged) and found <= whole
    assert kl_of_top({0: math.log(0.5)}, {0: -math.inf}) == math.inf


def test_bounds_of_a_coarse_type_are_wider_and_the_projects_own_win() -> None:
    assert bounds_of(PARAMS, True).kl > bounds_of(PARAMS, False).kl
    own = ParityParams(kl=0.3)
    assert bounds_of(own, False).kl == bounds_of(own, True).kl == 0.3


def test_choose_rows_does_not_depend_on_their_order(context: Context) -> None:
    rows = list(read_rows(context.inputs["dataset"].path, "test"))
    assert choose_rows(rows, 4) == choose_rows(rows[::-1], 4) == sorted(rows, key=lambda r: r.id)[:4]


def test_template_error_points_behind_the_shorter_one_when_it_is_a_beginning() -> None:
    error = template_error("r", [1, 2], [1, 2, 3])
    assert error.facts["position"] == 2 and error.facts["exported"] == "[3]"


def test_figures_count_the_prompts() -> None:
    figures = figures_of([comparison(), comparison(answer_equal=False)])
    assert figures["parity.greedy_agreement"].value == 0.5 and figures["parity.greedy_agreement"].n == 2
