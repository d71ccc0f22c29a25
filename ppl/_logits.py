"""Derivatives of Bernoulli and Binomial log-probabilities at logits of exactly 0, where some versions of NumPyro have a kink.

Every network whose last layer starts at zero begins there. NumPyro 0.22 writes log(1 + e^x) as jnp.clip(x, 0) + log1p(exp(-|x|)),
whose derivative comes out as 0 at 0 instead of 1/2: the gradient of the log-probability as y, not y - 1/2. A formula with all its
derivatives takes its place in NumPyro itself, since every objective scores through it. Values are the same.

Importing this module changes no formula yet. It puts a test in front of each of the two functions: the first call, whoever makes
it, compiles two derivatives at 0 (0.2 to 0.4 s) and leaves NumPyro's function in its place if they are right, and ours if not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import gammaln
from numpyro.distributions import discrete

from .._workarounds import Workaround
from ._compat import validate_sample

# The first two derivatives of log(1 + e^x) at 0.
EXACT = (0.5, 0.25)


def _softplus(x: Any) -> Any:
    """log(1 + e^x), all of it through |x|, whatever JAX takes its derivative at 0 to be: both parts are seen from the same side.

    No comparison, which the search for jumps would have to look into.
    """
    size = jnp.abs(x)
    return 0.5 * (x + size) + jnp.log1p(jnp.exp(-size))


def _bernoulli_loss(x: Any, y: Any) -> Any:
    """Minus the log-probability of y (0 or 1) at logits x, infinite ones too."""
    is_finite = jnp.isfinite(x)
    finite = jnp.where(is_finite, x, 0)
    return jnp.where(is_finite, _softplus(finite) - finite * y, jnp.inf * jnp.logical_xor(y, x > 0))


@validate_sample
def _binomial_log_prob(self: Any, value: Any) -> Any:
    n = jnp.asarray(self.total_count, jnp.result_type(float))
    log_ways = gammaln(n + 1) - gammaln(value + 1) - gammaln(n - value + 1)
    return log_ways + value * self.logits - n * _softplus(self.logits)


class Mend:
    """A function of NumPyro's under test: at its first call it stays, or `ours` takes its place.

    Args:
        name: of the record.
        owner: where the function is found.
        attribute: under which name.
        ours: what takes its place.
        softplus: (function, x, 0, 1) -> log(1 + e^x), as the function computes it.
    """

    def __init__(
        self, name: str, owner: Any, attribute: str, ours: Callable[..., Any], softplus: Any
    ) -> None:
        self.name, self.owner, self.attribute, self.ours = name, owner, attribute, ours
        self.theirs = getattr(owner, attribute)
        self.softplus = functools.partial(softplus, self.theirs)
        self.found: tuple[float, float] | None = None

        @functools.wraps(self.theirs)
        def first(*args: Any, **kwargs: Any) -> Any:
            return self.decide()(*args, **kwargs)

        setattr(owner, attribute, first)

    def decide(self) -> Callable[..., Any]:
        """Test the function, once, and put the right one in its place; returns it."""
        if self.found is None:
            with jax.ensure_compile_time_eval():
                # 0 and 1 are arguments: what depends on no argument would be compiled by itself here.
                both = jax.jit(jax.value_and_grad(jax.grad(self.softplus)))(0.0, 0.0, 1.0)
            self.found = (float(both[0]), float(both[1]))
            setattr(self.owner, self.attribute, self.right)
        return self.right

    @property
    def right(self) -> Callable[..., Any]:
        """The function whose derivatives are right."""
        return self.theirs if np.allclose(self.found or np.nan, EXACT, rtol=1e-6) else self.ours

    def record(self) -> Workaround:
        """What the test found."""
        is_applied = self.decide() is self.ours
        return Workaround(
            self.name,
            f"numpyro {numpyro.__version__}",
            "log(1 + e^x) in this log-probability has wrong derivatives at logits of exactly 0.",
            is_applied,
            f"They come out as {self.found}{', not' if is_applied else ', which is'} {EXACT}.",
        )


MENDS = (
    Mend(
        "bernoulli-logits",
        discrete, "binary_cross_entropy_with_logits", _bernoulli_loss,
        lambda loss, x, zero, one: loss(x, zero),
    ),
    Mend(
        "binomial-logits",
        discrete.BinomialLogits, "log_prob", _binomial_log_prob,
        lambda log_prob, x, zero, one: -log_prob(dist.BinomialLogits(x, one, validate_args=False), zero),
    ),
)  # fmt: skip


def records() -> tuple[Workaround, ...]:
    """A record of each mend, after its test."""
    return tuple(mend.record() for mend in MENDS)
