"""Learning rates that are known to work, by what is trained and what is learned."""

from __future__ import annotations

# Peak learning rates of AdamW. full: 1e-5 to 5e-5 (Devlin et al. 2019, arXiv:1810.04805, A.3: 2e-5 to 5e-5; Alpaca,
# Vicuna, Tulu: 1e-5 to 2e-5). lora: 1e-4 to 2e-3, ten times that of full tuning, whatever the rank (Hu et al. 2021,
# arXiv:2106.09685, table 11: 2e-4 to 5e-4; Schulman et al. 2025, "LoRA Without Regret"). qlora: the same (Dettmers et
# al. 2023, arXiv:2305.14314, table 9: 1e-4 to 2e-4). prompt: 1e-3 to 0.3 (Lester et al. 2021, arXiv:2104.08691: 0.3;
# PEFT's examples: 1e-3 to 3e-2).
RATES = {"full": (1e-5, 5e-5), "lora": (1e-4, 2e-3), "qlora": (1e-4, 2e-3), "prompt": (1e-3, 0.3)}
DEFAULTS = {"full": 2e-5, "lora": 2e-4, "qlora": 2e-4, "prompt": 1e-2}
# Preferences are learned with a twentieth of that (Rafailov et al. 2023, arXiv:2305.18290, appendix B: 1e-6; TRL's
# recipes: 5e-7 to 5e-6 full, 5e-6 to 5e-5 LoRA; orpo: Hong et al. 2024, arXiv:2403.07691: 5e-6 to 8e-6).
PREFERENCES, PREFERENCE_SHARE = frozenset({"dpo", "kto", "orpo"}), 20


def usual_range(method: str, objective: str) -> tuple[float, float]:
    """The lowest and the highest; of a plugin's method, LoRA's."""
    low, high = RATES.get(method, RATES["lora"])
    return (low / PREFERENCE_SHARE, high / PREFERENCE_SHARE) if objective in PREFERENCES else (low, high)


def default_rate(method: str, objective: str) -> float:
    """What is taken where nothing is said; of a plugin's method, LoRA's."""
    rate = DEFAULTS.get(method, DEFAULTS["lora"])
    return round(rate / PREFERENCE_SHARE, 9) if objective in PREFERENCES else rate
