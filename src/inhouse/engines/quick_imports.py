"""Import transformers without what only assisted decoding, GLUE scores and object detection need.

Its modules import scikit-learn (with pandas) and SciPy as soon as these are installed: 1.2 of 5.1 CPU seconds before a
training's first step, for functions that no training calls. Here they are imported when one is called.
PEFT imports bitsandbytes, which compiles four functions at once: another 1.1. Here each is compiled when it is called.
"""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

CHECKS = ("is_sklearn_available", "is_scipy_available")
# Module -> the functions that it takes from elsewhere at its top. A name that a version lacks is left alone.
LATER = {
    "transformers.loss.loss_utils": {},
    "transformers.generation.candidate_generator": {"roc_curve": "sklearn.metrics"},
    "transformers.data.metrics": {
        "f1_score": "sklearn.metrics", "matthews_corrcoef": "sklearn.metrics",
        "pearsonr": "scipy.stats", "spearmanr": "scipy.stats",
    },
}  # fmt: skip
MATCHERS = "transformers.loss."  # all of these take the same function
ASSIGNMENT = {"linear_sum_assignment": "scipy.optimize"}


def import_quickly() -> None:
    """Import the modules of LATER, once, while transformers takes both packages for absent; then put all right."""
    if "transformers.loss.loss_utils" in sys.modules or not _installed("sklearn", "scipy"):
        return
    utils = importlib.import_module("transformers.utils")
    true = {name: vars(utils)[name] for name in CHECKS if name in vars(utils)}
    stand_ins = {name: _absent(name) for name in true}
    before = set(sys.modules)
    vars(utils).update(stand_ins)
    try:
        for name in LATER:
            if importlib.util.find_spec(name) is not None:
                importlib.import_module(name)
    finally:
        vars(utils).update(true)
        for name in sorted(set(sys.modules) - before):
            _restore(sys.modules[name], true, stand_ins)


def import_adapters_quickly() -> None:
    """Import PEFT while what asks torch to compile a function gets one that is compiled at its first call."""
    if "peft" in sys.modules or not _installed("peft", "bitsandbytes"):
        return
    import torch

    usual = torch.compile
    torch.compile = _compiled_later(usual)
    try:
        importlib.import_module("peft")
    finally:
        torch.compile = usual
    gc.freeze()  # what is imported stays: to look for garbage among its 400,000 objects takes 0.2 s each time


def _compiled_later(compile_now: Any) -> Any:
    def later(function: Any = None, **settings: Any) -> Any:
        if function is None:
            return lambda given: later(given, **settings)
        compiled = functools.cache(lambda: compile_now(function, **settings))

        @functools.wraps(function)
        def call(*values: Any, **named: Any) -> Any:
            return compiled()(*values, **named)

        return call

    return later


def _installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) is not None for package in packages)


def _absent(name: str) -> Any:
    def check() -> bool:
        return False

    check.__name__ = name
    return check


def _restore(module: ModuleType, true: dict[str, Any], stand_ins: dict[str, Any]) -> None:
    """Give a module the true checks, and functions that import what they stand for."""
    if not module.__name__.startswith("transformers"):
        return
    held = vars(module)
    found = [name for name, stand_in in stand_ins.items() if held.get(name) is stand_in]
    for name in found:
        held[name] = true[name]
    if found:
        wanted = ASSIGNMENT if module.__name__.startswith(MATCHERS) else LATER.get(module.__name__, {})
        for name, package in wanted.items():
            held.setdefault(name, _later(package, name))


def _later(package: str, name: str) -> Any:
    def call(*values: Any, **named: Any) -> Any:
        return getattr(importlib.import_module(package), name)(*values, **named)

    call.__name__ = name
    return call
