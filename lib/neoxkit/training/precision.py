"""What a precision of auto means on a CPU: bf16 where it multiplies the model's matrices faster."""

from neoxkit.models import configs, flops, loading
from neoxkit.training import arguments, distributed

WORTH = 1.5  # times fp32's speed; the rest of a step gains less than the products do


def settle(parsed: arguments.Parsed) -> None:
    """Replace a precision that `arguments` left at auto: rank 0 measures for all ranks."""
    if parsed.kit.precision != "auto":
        return
    width = configs.config_of(parsed.kit.base).hidden_size
    measured = width >= loading.NARROWEST and distributed.is_first()
    (gain,) = distributed.of_first([flops.bf16_gain(width) if measured else 0.0])
    precision = "bf16" if gain >= WORTH else "fp32"
    arguments.settle_precision(parsed, precision)
    if gain:
        faster = f"multiplies the model's matrices {gain:.1f} times as fast in bf16 as in fp32"
        parsed.notices.append(f"precision auto is {precision} here: this CPU {faster}")
