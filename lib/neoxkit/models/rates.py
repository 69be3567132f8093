"""The learning rate that fits a base: from random weights, pretrained, or with LoRA adapters.

The peak rates of pre-training are those of Pythia (Biderman et al. 2023, arXiv:2304.01373, table 1;
14M and 31M: their configurations in EleutherAI/pythia) and of GPT-NeoX-20B (Black et al. 2022,
arXiv:2204.06745). Pre-training itself ends at a tenth of the peak, and fine-tuning starts there.
LoRA needs ten times the rate of full fine-tuning (Schulman et al. 2025, LoRA Without Regret,
thinkingmachines.ai/blog/lora).
"""

import math
from dataclasses import dataclass

from neoxkit.models import shape
from neoxkit.settings import TINY

TINY_RATE = 2e-3  # with it the built-in model learns the sample in two minutes
# Parameters -> the model of that size, and the peak rate of its pre-training.
PRETRAINED_WITH = {
    14e6: ("Pythia-14m", 1e-3),
    31e6: ("Pythia-31m", 1e-3),
    70e6: ("Pythia-70m", 1e-3),
    160e6: ("Pythia-160m", 6e-4),
    410e6: ("Pythia-410m", 3e-4),
    1.0e9: ("Pythia-1b", 3e-4),
    1.4e9: ("Pythia-1.4b", 2e-4),
    2.8e9: ("Pythia-2.8b", 1.6e-4),
    6.9e9: ("Pythia-6.9b", 1.2e-4),
    12e9: ("Pythia-12b", 1.2e-4),
    20e9: ("GPT-NeoX-20B", 0.97e-4),
}
TUNED, LORA = 0.1, 10  # times the pre-training rate; times the full fine-tuning rate
FAR_ABOVE = 5  # times the rate that fits: above this, a rate is reported


@dataclass(frozen=True)
class Fit:
    """The rate that fits a base, and the reason, in words that follow a number."""

    rate: float
    why: str


def of(base: str, from_scratch: bool = False, lora: bool = False) -> Fit:
    """Return the rate that fits a base by its name; read its shape unless it is `tiny`."""
    size = 0 if base == TINY else shape.look_up(base).num_parameters
    return by_size(base, size, from_scratch, lora)


def by_size(base: str, num_parameters: int, from_scratch: bool = False, lora: bool = False) -> Fit:
    """Return the rate that fits a base of known size: that of the model nearest in the ratio of
    sizes.

    >>> by_size("EleutherAI/pythia-410m", 405_334_016)
    Fit(rate=3e-05, why='0.1 of what Pythia-410m was pre-trained with')
    """
    if base == TINY:
        return Fit(TINY_RATE, "tiny starts from random weights")
    nearest = min(PRETRAINED_WITH, key=lambda size: abs(math.log(size / num_parameters)))
    model, rate = PRETRAINED_WITH[nearest]
    if from_scratch:
        return Fit(rate, f"what {model} was pre-trained with")
    times = TUNED * (LORA if lora else 1)
    why = f"{TUNED} of what {model} was pre-trained with"
    return Fit(float(f"{times * rate:.3g}"), f"{LORA} times {why}, for LoRA" if lora else why)


def beside(rate: float, fit: Fit) -> str:
    """Describe a rate beside the one that fits, for a table row.

    >>> beside(1e-5, Fit(3e-05, "0.1 of what Pythia-410m was pre-trained with"))
    '1e-05; what fits this base is 3e-05 (0.1 of what Pythia-410m was pre-trained with)'
    """
    if doubt(rate, fit):
        return f"FAR ABOVE WHAT FITS: {_times(rate, fit)} {fit.rate:g} ({fit.why})"
    fits = "" if rate == fit.rate else f"; what fits this base is {fit.rate:g}"
    return f"{rate:g}{fits} ({fit.why})"


def doubt(rate: float, fit: Fit) -> str:
    """Describe a rate that is far above the one that fits; return "" for any other.

    >>> doubt(2e-3, Fit(3e-05, "for this reason")), doubt(1e-4, Fit(3e-05, "for this reason"))
    ('learning_rate 0.002 is 67 times what fits this base (3e-05, for this reason)', '')
    """
    if rate <= FAR_ABOVE * fit.rate:
        return ""
    return f"learning_rate {_times(rate, fit)} what fits this base ({fit.rate:g}, {fit.why})"


def _times(rate: float, fit: Fit) -> str:
    return f"{rate:g} is {rate / fit.rate:,.0f} times"
