"""`ppl.expectation`: the value and gradient of an expected value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import PyTree

from .._compat import typed_key
from .._own_jit import OwnJit
from .._types import Key
from ..analysis import Analysed, Plan, plan_of
from ..checks import (
    CheckJumps,
    as_arrays,
)
from ..language import joined
from ._checked import CheckedPrograms
from ._further import FurtherChecks
from ._pipeline import Pipeline, fresh_state

Array = jax.Array


class Expectation:
    """L(params) = E[fn(params, *args)] over the draws that `fn` makes. Made by `ppl.expectation`.

    Its methods take `params`, the first argument of `fn`, a pytree whose floating-point leaves are differentiated; a PRNG key of
    either kind; the `state` of baselines, by `init_state` or the step before; and the arguments of `fn` after the parameters, by
    position or by name.
    """

    def __init__(
        self,
        fn: Callable[..., PyTree],
        strategies: Mapping[str, Any] | str | None = None,
        *,
        num_replicates: int = 1,
        check_jumps: CheckJumps = True,
        examples: list[tuple[PyTree, PyTree]] | None = None,
        checks: dict[str, PyTree] | None = None,
    ) -> None:
        self.programs = CheckedPrograms(
            fn, strategies, num_replicates, check_jumps, examples, checks
        )
        self._pipeline = Pipeline(self.programs, FurtherChecks(self.programs, Expectation))
        # What is compiled holds rules that look at the programs later on. Of this object they must not know: JAX keeps a compiled
        # function until nothing leads to it, and its rules would.
        self._estimate = OwnJit(self._pipeline.estimate)
        self._value = OwnJit(self._pipeline.value)

    def value(self, params: PyTree, key: PyTree, *args: PyTree, **kwargs: PyTree) -> Array:
        """One estimate of L (scalar, the unit of `fn`). Its derivative under `jax.grad` is the estimator of `grad`."""
        params, args = as_arrays(params), joined(args, kwargs)
        with self.programs.shown(params, args):
            return self._value(params, typed_key(key), args)

    def grad(self, params: PyTree, key: Key, *args: PyTree, **kwargs: PyTree) -> PyTree:
        """One estimate of dL/dparams, a pytree like `params`."""
        return self.step(params, None, key, *joined(args, kwargs))[1]

    def value_and_grad(
        self, params: PyTree, key: Key, *args: PyTree, **kwargs: PyTree
    ) -> tuple[Array, PyTree]:
        """One estimate of L and of its gradient, from the same draws."""
        return self.step(params, None, key, *joined(args, kwargs))[:2]

    def step(
        self, params: PyTree, state: PyTree, key: Key, *args: PyTree, **kwargs: PyTree
    ) -> tuple[Array, PyTree, PyTree]:
        """Value, gradient and the next state of baselines; `state` None starts afresh."""
        params, args = as_arrays(params), joined(args, kwargs)
        with self.programs.shown(params, args):
            return self._estimate(params, state, typed_key(key), args)

    def init_state(self, params: PyTree, *args: PyTree, **kwargs: PyTree) -> dict[str, PyTree]:
        """The initial state of baselines and control variates: site -> state."""
        return fresh_state(self.ready(params, *joined(args, kwargs)))

    def plan(self, params: PyTree, *args: PyTree, **kwargs: PyTree) -> Plan:
        """What each site will get, why, and what it costs; printing it shows a table. Runs every check."""
        args = joined(args, kwargs)
        plan = plan_of(self.ready(params, *args), len(jax.tree.leaves(params)))
        return dataclasses.replace(plan, search=self.programs.outcome(as_arrays(params), args))

    def ready(self, params: PyTree, *args: PyTree, **kwargs: PyTree) -> Analysed:
        """The analysed program, with every check done."""
        params, args = as_arrays(params), joined(args, kwargs)
        with self.programs.shown(params, args):
            return self._pipeline.checked(params, args)


def expectation(
    fn: Callable[..., PyTree],
    *,
    strategies: Mapping[str, object] | str | None = None,
    num_replicates: int = 1,
    check_jumps: CheckJumps = True,
    examples: list[tuple[PyTree, PyTree]] | None = None,
    checks: dict[str, PyTree] | None = None,
) -> Expectation:
    """The expected value L(params) = E[fn(params, *args)] with unbiased estimates of its value and gradient.

    `fn` draws with `ppl.sample` or `ppl.draw(program, ...)` and returns one real number, or one with a control variate
    (`ppl.controlled`).

    Args:
        fn: `(params, *args) -> scalar`, or `Controlled`.
        strategies: pattern -> strategy for latent sites: a `Strategy`, or "reparam", "implicit", "rejection_reparam",
            "reinforce", "reinforce_loo", "enum", "mvd", "disarm", "arm", "rebar", "boundary", "auto", or the biased
            "gumbel_softmax" and "straight_through".
            Patterns are names or shell-style wildcards; the exact name first, then the first pattern that
            matches. Sites not named follow their own `strategy=`, else Reparam where the sampler is
            differentiable, else they are refused. "auto" takes the first sound one of Reparam, Enum (at most
            32 values, a bounded number of states), MVD, Reinforce with leave-one-out. RejectionReparam serves no site that
            Reparam does not, and is refused by the same jumps; `inference.diagnostics.pilot` compares the two.
        num_replicates: independent runs averaged in one estimate.
        check_jumps: look for jumps in reparameterised values, once per shape of the arguments; a `ppl.JumpSearch` says how
            finely. What the default finds, and what it does not: docs/boundaries.md.
        examples: a list shared by expectations of one family, in which the first concrete (params, args) are
            kept. Where the expectation is first met under an outer jit, the search for jumps tries these
            values.
        checks: a dict shared by expectations of the same `fn` and strategies, in which the outcome of checks is kept.

    Raises:
        ValueError: at the first call, before any device work, naming site and remedy: sample statement inside
            raw JAX control flow; reparameterised value, or noise of `rng_key`, that makes the result jump;
            support that depends on a parameter under a score or weak-derivative strategy; strategy that the
            distribution cannot have; pattern that matches no site; duplicate site; discrete site without a
            strategy; joint enumeration or replay beyond 65,536 states; a subsampled plate whose rows meet. While a value is
            differentiated in an argument, or in what `fn` closes over: what would be refused were it a parameter.

    Validity: with the unbiased strategies E[grad] = dL/dparams, provided differentiation and expectation
    commute (integrable envelope) and `fn` is piecewise smooth in reparameterised values. A second derivative of an
    estimate is unbiased where all sites are pathwise or summed and the gradient does not jump; it is refused elsewhere.

    Example:
        >>> from lapilli import ppl
        >>> import jax, numpyro.distributions as dist
        >>> def cost(p):
        ...     b = ppl.sample("b", dist.Bernoulli(p), strategy="enum")
        ...     return jax.numpy.where(b == 1, 0.0, -p / 2)
        >>> round(float(ppl.expectation(cost).grad(0.3, jax.random.key(0))), 5)  # d/dp of -(1 - p) p / 2
        -0.2

    Reference: Lew et al. 2023, arXiv:2212.06386; Becker et al. 2024, arXiv:2406.15742.
    """
    return Expectation(
        fn,
        strategies,
        num_replicates=num_replicates,
        check_jumps=check_jumps,
        examples=examples,
        checks=checks,
    )
