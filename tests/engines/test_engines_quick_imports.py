"""What transformers loads before a training: not the packages that only other tasks need, which still work."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import json, sys
from inhouse.engines.quick_imports import import_quickly
import_quickly()
import_quickly()
import transformers.trainer
import transformers.models.llama.modeling_llama
loaded = [name for name in ("sklearn", "pandas", "scipy") if name in sys.modules]
import transformers.utils as utils
import transformers.data.metrics as metrics
import transformers.generation.candidate_generator as assisted
import transformers.loss.loss_rt_detr as matched
print(json.dumps({
    "loaded": loaded,
    "same": assisted.is_sklearn_available is utils.is_sklearn_available
    and matched.is_scipy_available is utils.is_scipy_available,
    "installed": [assisted.is_sklearn_available(), matched.is_scipy_available()],
    "curve": list(assisted.roc_curve([0, 1, 1], [0.1, 0.4, 0.35])[1]),
    "pairs": [list(map(int, side)) for side in matched.linear_sum_assignment([[4, 1], [2, 8]])],
    "f1": float(metrics.f1_score([0, 1, 1], [0, 1, 1])),
}))
"""


def test_training_imports_neither_scikit_learn_nor_scipy_and_both_come_when_called() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["loaded"] == []
    assert found["same"] and found["installed"] == [True, True]
    assert found["curve"] == [0.0, 0.5, 1.0, 1.0]  # by hand: thresholds inf, 0.4, 0.35, 0.1
    assert found["pairs"] == [[0, 1], [1, 0]] and found["f1"] == 1.0


COMPILED = """
import json
import torch
from inhouse.engines.quick_imports import _compiled_later, import_adapters_quickly
usual, asked = torch.compile, []

def told(function, **settings):
    asked.append(settings)
    return lambda value: function(value) + 1

later = _compiled_later(told)
direct, decorated = later(abs), later(dynamic=True)(abs)
before = list(asked)
values = [direct(-2), direct(-3), decorated(-4)]
import_adapters_quickly()
import bitsandbytes, peft
weights = torch.linspace(-1, 1, 128).reshape(2, 64)
packed, state = bitsandbytes.functional.quantize_4bit(weights, blocksize=64, quant_type="nf4")
apart = (bitsandbytes.functional.dequantize_4bit(packed, state) - weights).abs().max()
print(json.dumps({"before": before, "asked": asked, "values": values, "same": torch.compile is usual,
                  "apart": float(apart)}))
"""


def test_functions_of_bitsandbytes_are_compiled_when_called_and_torch_is_as_before() -> None:
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["before"] == []
    assert found["asked"] == [{}, {"dynamic": True}]  # once each, however often called
    assert found["values"] == [3, 4, 5]
    assert found["same"] is True
    assert found["apart"] < 0.16  # half of the widest gap between two values of nf4
