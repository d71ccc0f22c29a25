"""Control variates over replicates: an expectation whose function returns `ppl.controlled(value, control, mean)`.

    L-hat = mean over halves h of  mean_{r in h} [f_r - a_{h'} (c_r - mu)],   a_{h'} = Cov(f, c) / Var(c) in the other half h'.

a_{h'} knows nothing of the draws that it multiplies, and E[c - mu] = 0: the estimate is unbiased. So is its gradient at fixed a,
under every strategy that is unbiased for f - a (c - mu) at every number a. The optimal a leaves 1 - rho^2 of the variance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._types import Args
from ..analysis import Controlled
from ..language import apply
from ..strategies import stop

Array = jax.Array

# Replicates in each half. A coefficient of n normal pairs has a variance for n >= 4, and not even a mean for n = 2.
LEAST = 4


@dataclasses.dataclass(frozen=True)
class WithCoefficients:
    """`fn` with the coefficients of value and of control among its arguments: a value, not a record."""

    fn: Callable[..., PyTree]

    def __call__(self, params: PyTree, coefficients: Array, *args: PyTree) -> PyTree:
        found = apply(self.fn, (params, *args))
        return coefficients[0] * found.value - coefficients[1] * (found.control - found.mean)


def check_replicates(num_replicates: int) -> None:
    """Refuse replicates that cannot be halved, or are too few for a coefficient.

    Raises:
        ValueError: an odd number, or fewer than eight.
    """
    if num_replicates % 2 or num_replicates < 2 * LEAST:
        raise ValueError(
            f"ppl.controlled: the function of an expectation returned a control variate, and num_replicates is {num_replicates}. "
            f"Its coefficient is fitted to one half of the replicates and used in the other: take an even number of at least "
            f"{2 * LEAST}, e.g. num_replicates=16."
        )


def refuse_twice() -> None:
    """The rule of controlled estimates: their coefficients are held fixed.

    Raises:
        TypeError: always.
    """
    raise TypeError(
        "A gradient estimate with a control variate (ppl.controlled) was differentiated again, and its coefficients have no "
        "derivative. Return the value alone where second derivatives are taken."
    )


def mean_of_halves(
    surrogate: Callable[[bool, Array, tuple[PyTree, ...]], tuple[Array, PyTree]],
    num_replicates: int,
    key: Array,
    args: Args,
) -> tuple[Array, PyTree]:
    """The surrogate of a controlled expectation, and the state that the first half leaves.

    The other half's state would have seen a coefficient of the first, and its baselines the draws that they serve.

    Args:
        surrogate: (whether of one replicate rather than half of them, key, (coefficients, *args)) -> a surrogate and a state.
        num_replicates: of both halves.
        key: decides all noise.
        args: the arguments of the function.
    """
    half = num_replicates // 2
    halves = jax.random.split(key)

    def value(key: Array, coefficients: Array) -> Array:
        return stop(surrogate(True, key, (coefficients, *args))[0])

    # Replicate r of a half draws what a single run draws with its key.
    keys = jax.vmap(lambda key: jax.random.split(key, half))(halves)
    units = jnp.array([[1.0, 0.0], [0.0, -1.0]])  # the value alone, the control alone
    over = jax.vmap(jax.vmap(jax.vmap(value, (0, None)), (0, None)), (None, 0))
    values, controls = over(keys, units)
    fitted = jax.vmap(coefficient)(values, controls)
    others = jnp.stack([jnp.ones(2), fitted[::-1]], axis=1)
    found, states = jax.vmap(lambda key, c: surrogate(False, key, (c, *args)))(halves, others)
    return found.mean(), jax.tree.map(lambda x: x[0], states)


def coefficient(values: Array, controls: Array) -> Array:
    """Cov(values, controls) / Var(controls), 0 where controls do not vary or anything is not finite; both [replicates]."""
    centred = controls - controls.mean()
    square = jnp.sum(centred**2)
    ratio = jnp.sum(centred * (values - values.mean())) / jnp.where(square > 0, square, 1.0)
    return jnp.where((square > 0) & jnp.isfinite(ratio), ratio, 0.0)


def controlled(value: Array, control: Array, mean: Array) -> Controlled:
    """A value with a control variate: what the function of an expectation, or an objective of one's own, returns.

        E[value] = E[value - a (control - mean)]   for every number a.

    The coefficient a = Cov(value, control) / Var(control) is fitted to one half of the replicates and used in the other, so that
    the estimate stays unbiased; the variance that is left is 1 - rho^2 of the plain one, rho the correlation, and some more for
    the noise of a, of order 1 / replicates. It is held fixed where the estimate is differentiated.

    Args:
        value: what is estimated, a scalar of the draws.
        control: a scalar of the same draws.
        mean: E[control], exactly, a function of parameters and arguments; it is differentiated, so that a mean that moves with
            the parameters must be written as a function of them.

    Returns:
        A `Controlled`, to be returned as it is: arithmetic on it is an error, since a function of an estimate is biased.

    Raises:
        ValueError: value, control or mean is no real scalar; when it runs: `num_replicates` is odd or below 8 (fewer replicates
            give coefficients without a variance), or the mean depends on a site.
        TypeError: the gradient is differentiated again.

    Validity: value and gradient are unbiased if `mean` is the exact mean of `control`; that it does not depend on draws is
    checked, that it is right is not. A coefficient that is best for
    the value need not be best for its gradient (a score without a baseline meets the mean of the cost, which no coefficient
    removes): `inference.diagnostics.gradient_report` measures it.

    Example:
        >>> from lapilli import ppl
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> def cost(loc):
        ...     z = ppl.sample("z", dist.Normal(loc, 1.0))
        ...     return ppl.controlled(3.0 * z, control=z, mean=loc)
        >>> estimate = ppl.expectation(cost, num_replicates=8)
        >>> round(float(estimate.value(jnp.array(0.5), jax.random.key(0))), 4)
        1.5

    Reference: Owen 2013, Monte Carlo theory, methods and examples, section 8.9; Avramidis and Wilson 1993 (splitting).
    """
    parts = {"value": value, "control": control, "mean": mean}
    for name, part in parts.items():
        part = jnp.asarray(part)
        if part.shape != () or not jnp.issubdtype(part.dtype, jnp.floating):
            raise ValueError(
                f"ppl.controlled: {name} has shape {part.shape} and dtype {part.dtype}. Pass one real number for each of value, "
                "control and mean; sum several."
            )
    return Controlled(*map(jnp.asarray, parts.values()))
