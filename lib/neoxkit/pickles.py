"""What a checkpoint's pickles may hold: tensors, plain data, and four harmless classes.

DeepSpeed opens its checkpoints as any pickle, and a stranger's pickle is code that runs.
"""

import os


def restrict() -> None:
    """Let torch.load of this process refuse everything else, whatever its caller asks for."""
    import torch
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    torch.serialization.add_safe_globals(
        [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    )
