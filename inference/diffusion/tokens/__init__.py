"""Discrete diffusion: tokens that are masked, or replaced at random, and particles that correct their samplers.

Input: networks that say what each variable may have been, and exponents. Output: a Feynman-Kac model whose steps have exact
kernels: no limit of short steps is taken.
"""

from ._fkc_tokens import TokenParticle as TokenParticle, fkc_tokens as fkc_tokens
from ._kernels import (
    Kind as Kind,
    Network as Network,
    asked as asked,
    log_ratios as log_ratios,
    log_reference as log_reference,
    noised as noised,
    refuse_logits as refuse_logits,
)
from ._model import TokenDiffusion as TokenDiffusion
