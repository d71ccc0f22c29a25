"""Second derivatives: of which estimates they are unbiased, and that they are refused elsewhere.

With every site pathwise or summed, an estimate at fixed noise is a function of the parameters, and so is its gradient. The mean
of the gradient's derivative is the second derivative of the expectation if the gradient does not jump as the parameters move:
the rule for first derivatives (`checks/_jumps.py`), one order up. E[relu(z)] has the density at 0 for a second derivative in the
mean of z, where the estimate's own is 0. So the gradient is searched like any program, the first time that somebody
differentiates it.

And the gradient must be that of the estimate: one that leaves out scores of mean zero is unbiased, its derivative is not. Third
derivatives are refused.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._compat import Jaxpr, no_handlers
from ..jaxprs import has_other_derivatives
from ..language import rng_key

Array = jax.Array
Value = Callable[..., Array]  # (params, key, *args) -> one estimate


def watched_again(x: Array, rule: Callable[[], None]) -> Array:
    """`x`; the rule is called, and may raise, when its derivative is differentiated. A third derivative is refused."""
    one = _one(rule, _one(_refuse_third, jnp.ones_like))

    @jax.custom_jvp
    def itself(x: Array) -> Array:
        return x

    @itself.defjvp
    def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> PyTree:
        return primals[0], tangents[0] * one(primals[0])

    return itself(x)


def _one(rule: Callable[[], None], after: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A function that is 1 everywhere, and calls the rule when it is differentiated; from then on it is `after`."""

    @jax.custom_jvp
    def one(x: Array) -> Array:
        return jnp.ones_like(x)

    @one.defjvp
    def _(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> PyTree:
        rule()
        return after(primals[0]), jnp.zeros_like(tangents[0])

    return one


def _refuse_third() -> None:
    raise TypeError(
        "A gradient estimate was differentiated three times, but nobody looks whether its second derivative jumps. "
        "Differentiate twice at most, and take finite differences beyond."
    )


def refuse_again() -> None:
    """The rule of estimates whose derivative is an estimator by itself."""
    raise TypeError(
        "A gradient estimate was differentiated again, but only Reparam, Implicit and Enum sites have an unbiased second "
        "derivative here. Make every site one of these, or differentiate once only."
    )


def check_derivatives(jaxpr: Jaxpr) -> None:
    """Refuse estimators of the gradient that are the gradient of no function.

    Raises:
        TypeError: an operation has a derivative of its own, as in gradient="stl" and "dreg".
    """
    if has_other_derivatives(jaxpr):
        raise TypeError(
            "A gradient estimate was differentiated again, but the estimate leaves out derivatives (stop_gradient, a custom "
            "derivative, an objective with gradient='stl', 'dreg' or 'gdreg' or with draws at fixed parameters), so that its own "
            "derivative is no estimate of a second one. Use gradient='full' and a program without them, or differentiate once."
        )


def refusal_of_jump(err: ValueError) -> TypeError:
    """The error for a gradient that jumps, or may."""
    return TypeError(
        f"A gradient estimate was differentiated again, but at fixed noise it is not known to be continuous: {err} The result "
        "meant is the gradient; a second derivative misses its jumps. Use smooth functions (softplus, not relu), finite "
        "differences of gradients, or differentiate once."
    )


def moving(args: PyTree) -> tuple[PyTree, PyTree]:
    """Arguments in two: those that a derivative may be taken in, and the rest."""
    import equinox as eqx

    return eqx.partition(
        args, lambda x: hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.inexact)
    )


def slope_of(value: Value) -> Callable[..., Array]:
    """A program ((params, moving arguments), rest) -> the gradient of an estimate, in a direction with all components."""
    import equinox as eqx

    def slope(moved: tuple[PyTree, ...], rest: PyTree) -> Array:
        key = rng_key("second derivative")
        estimate = lambda moved: value(moved[0], key, *eqx.combine(moved[1], rest))
        with no_handlers():  # a run of its own, and not statements of this one
            leaves = jax.tree.leaves(jax.grad(estimate)(moved))
        rng = np.random.default_rng(0)
        return sum(((x * rng.normal(size=x.shape)).sum().real for x in leaves), jnp.zeros(()))

    return slope
