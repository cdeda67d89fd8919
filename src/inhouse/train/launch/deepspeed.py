"""DeepSpeed's settings for ZeRO 1, 2 and 3 (Rajbhandari et al. 2020, arXiv:1910.02054).

DeepSpeed is an optional back-end for GPUs. The settings were checked against DeepSpeed 0.19.8's own models
(deepspeed.runtime.config.DeepSpeedConfig); training with it has NOT been run by the makers of this package.
"""

from __future__ import annotations

from typing import Any, Literal

Zero = Literal[1, 2, 3]
Offload = Literal["none", "optimizer", "all"]


def deepspeed_settings(zero: Zero, offload: Offload, bf16: bool) -> dict[str, Any]:
    """Settings for transformers' trainer, which fills in every "auto" from its own arguments.

    zero: what is kept in parts: 1 the optimiser's state, 2 and gradients, 3 and weights. `offload` moves the
    optimiser's state, or weights too (ZeRO 3 only), to the CPU's memory.
    """
    stage: dict[str, Any] = {
        "stage": zero,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": 500_000_000,
    }
    if offload != "none":
        stage["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if zero == 3:
        stage["stage3_gather_16bit_weights_on_model_save"] = True  # or a checkpoint's weights are empty
        if offload == "all":
            stage["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "bf16": {"enabled": bf16},
        "zero_optimization": stage,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "steps_per_print": 1_000_000,
        "wall_clock_breakdown": False,
    }
