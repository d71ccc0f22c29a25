"""`ppl.expectation`: the value and gradient of an expected value."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._compiler import warn_of_wrong_fusions
from ._analyse import Analysed, analyse
from ._compat import is_concrete, typed_key
from ._engine import Unsuitable
from ._estimate import surrogate_of
from ._jumps import check_jumps, concrete, concrete_tree
from ._params import strong
from ._plan import Plan, plan_of
from ._row_probe import try_rows

Array = jax.Array


class Expectation:
    """L(params) = E[fn(params, *args)] over the draws that `fn` makes. Made by `ppl.expectation`."""

    def __init__(
        self,
        fn: Callable[..., Any],
        strategies: Mapping[str, Any] | str | None = None,
        *,
        num_replicates: int = 1,
        check_jumps: bool = True,
        examples: list[Any] | None = None,
    ) -> None:
        self.fn = fn
        self.strategies = strategies
        self.num_replicates = num_replicates
        self.check_jumps = check_jumps
        # Concrete (params, args) seen so far, at most one: under an outer jit the checks need some values to
        # try.
        self._examples = [] if examples is None else examples
        self._values: Any = None
        self._demoted: dict[Any, dict[str, set[str]]] = {}
        self._compiled = eqx.filter_jit(self._estimate)
        self._compiled_value = eqx.filter_jit(self._surrogate)

    def value(self, params: Any, key: Any, *args: Any) -> Array:
        """One estimate of L (scalar, the unit of `fn`). Its derivative under `jax.grad` is the estimator of `grad`."""
        params = as_arrays(params)
        with self._shown(params, args):
            return self._compiled_value(params, typed_key(key), args)

    def grad(self, params: Any, key: Any, *args: Any) -> Any:
        """One estimate of dL/dparams, a pytree like `params`."""
        return self.step(params, None, key, *args)[1]

    def value_and_grad(self, params: Any, key: Any, *args: Any) -> tuple[Array, Any]:
        """One estimate of L and of its gradient, from the same draws."""
        return self.step(params, None, key, *args)[:2]

    def step(self, params: Any, state: Any, key: Any, *args: Any) -> tuple[Array, Any, Any]:
        """Value, gradient and the next state of baselines; `state` None starts afresh."""
        params = as_arrays(params)
        with self._shown(params, args):
            return self._compiled(params, state, typed_key(key), args)

    def init_state(self, params: Any, *args: Any) -> dict[str, Any]:
        """The initial state of baselines and control variates: site -> state."""
        return _fresh_state(self.ready(params, *args))

    def plan(self, params: Any, *args: Any) -> Plan:
        """What each site will get, why, and what it costs; printing it shows a table. Runs every check."""
        return plan_of(self.ready(params, *args))

    def ready(self, params: Any, *args: Any) -> Analysed:
        """The analysed program, with every check done."""
        params = as_arrays(params)
        with self._shown(params, args):
            return self._checked(params, args)

    def _surrogate(self, params: Any, key: Array, args: Any) -> Array:
        program = self._checked(params, args, jax.random.key_impl(key))
        leaves = jax.tree.leaves(params)
        return surrogate_of(program, leaves, key, _fresh_state(program))[0]

    def _estimate(self, params: Any, state: Any, key: Array, args: Any) -> tuple[Array, Any, Any]:
        program = self._checked(params, args, jax.random.key_impl(key))
        leaves, tree = jax.tree.flatten(params)
        state = _fresh_state(program) if state is None else state

        def surrogate(leaves: list[Array]) -> Any:
            return surrogate_of(program, leaves, key, state)

        (value, state), grads = jax.value_and_grad(surrogate, has_aux=True)(leaves)
        return value, jax.tree.unflatten(tree, grads), state

    def _analyse(
        self, params: Any, args: Any, demoted: Mapping[str, set[str]], key_impl: Any = None
    ) -> Analysed:
        return analyse(
            self.fn, params, jax.random.key(0, impl=key_impl), args,
            strategies=self.strategies, num_replicates=self.num_replicates, demoted=demoted,
        )  # fmt: skip

    @contextlib.contextmanager
    def _shown(self, params: Any, args: Any) -> Iterator[None]:
        """While this is open the checks may try these values, if they are known."""
        warn_of_wrong_fusions()
        if is_concrete((params, args)):
            self._values = (params, args)
            if not self._examples:
                self._examples.append(self._values)
        try:
            yield
        finally:
            self._values = None

    def _checked(self, params: Any, args: Any, key_impl: Any = None) -> Analysed:
        """The analysed program; checked once per shape, when it is also found what `auto` has to avoid."""
        signature = signature_of((params, args))
        if signature in self._demoted:
            return self._analyse(params, args, self._demoted[signature], key_impl)
        demoted: dict[str, set[str]] = {}
        while True:
            try:
                program = self._analyse(params, args, demoted, key_impl)
                if self.check_jumps or program.rows:
                    self._check(program, params, args, demoted)
                break
            except Unsuitable as error:
                if not self._is_automatic(error.site, demoted):
                    raise
                demoted = self._demote(demoted, error.site)
        self._demoted[signature] = demoted
        return program

    def _check(
        self, program: Analysed, params: Any, args: Any, demoted: Mapping[str, set[str]]
    ) -> None:
        example = self._values or (self._examples[0] if self._examples else (None, None))

        def again(in_double: bool) -> tuple[Analysed, list[Any]]:
            known = [concrete_tree(t, e) for t, e in zip((params, args), example, strict=True)]
            known_params, known_args = jax.tree.map(_wide, known) if in_double else known
            known_params = jax.tree.map(jnp.asarray, known_params)
            copy = self._analyse(known_params, known_args, demoted)
            consts = [_wide(concrete(c)) if in_double else concrete(c) for c in copy.closed.consts]
            copy = dataclasses.replace(copy, closed=copy.closed.replace(consts=consts))
            return copy, [*jax.tree.leaves(known_params), jax.random.key(0)]

        try_rows(program, again)
        if self.check_jumps:
            check_jumps(program, again)

    def _is_automatic(self, site: str, demoted: Mapping[str, set[str]]) -> bool:
        from ._engine import Engine

        asked, _ = Engine(jax.random.key(0), self.strategies)._asked(site)
        return asked == "auto" and len(demoted.get(site, ())) < 4

    def _demote(self, demoted: dict[str, set[str]], site: str) -> dict[str, set[str]]:
        for name in ("reparam", "enum", "mvd", "reinforce"):
            if name not in demoted.get(site, set()):
                return demoted | {site: demoted.get(site, set()) | {name}}
        return demoted


def expectation(
    fn: Callable[..., Any],
    *,
    strategies: Mapping[str, Any] | str | None = None,
    num_replicates: int = 1,
    check_jumps: bool = True,
    examples: list[Any] | None = None,
) -> Expectation:
    """The expected value L(params) = E[fn(params, *args)] with unbiased estimates of its value and gradient.

    `fn` draws with `ppl.sample` or `ppl.draw(program, ...)` and returns one real number.

    Args:
        fn: `(params, *args) -> scalar`.
        strategies: pattern -> strategy for latent sites: a `Strategy`, or "reparam", "implicit", "rejection_reparam",
            "reinforce", "reinforce_loo", "enum", "mvd", "disarm", "arm", "rebar", "auto", or the biased "gumbel_softmax" and
            "straight_through".
            Patterns are names or shell-style wildcards; the exact name first, then the first pattern that
            matches. Sites not named follow their own `strategy=`, else Reparam where the sampler is
            differentiable, else they are refused. "auto" takes the first sound one of Reparam, Enum (at most
            32 values, bounded lanes), MVD, Reinforce with leave-one-out. RejectionReparam serves no site that Reparam
            does not, and is refused by the same jumps; `inference.pilot` compares the two.
        num_replicates: independent runs averaged in one estimate.
        check_jumps: look for jumps in reparameterised values, once per shape of the arguments.
        examples: a list shared by expectations of one family, in which the first concrete (params, args) are
            kept. Where the expectation is first met under an outer jit, the search for jumps tries these
            values.

    Raises:
        ValueError: at the first call, before any device work, naming site and remedy: sample statement inside
            raw JAX control flow; reparameterised value, or noise of `rng_key`, that makes the result jump;
            support that depends on a parameter under a score or weak-derivative strategy; strategy that the
            distribution cannot have; pattern that matches no site; duplicate site; discrete site without a
            strategy; joint enumeration or replay beyond 65,536 lanes.

    Validity: with the unbiased strategies E[grad] = dL/dparams, provided differentiation and expectation
    commute (integrable envelope) and `fn` is piecewise smooth in reparameterised values.

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
        fn, strategies, num_replicates=num_replicates, check_jumps=check_jumps, examples=examples
    )


def _fresh_state(program: Analysed) -> dict[str, Any]:
    return {s.address: s.strategy.init_state() for s in program.sites.values()}


def as_arrays(params: Any) -> Any:
    """Parameters as arrays of floating-point type.

    Raises:
        TypeError: a leaf is not a floating-point number or array.
    """

    def leaf(path: Any, x: Any) -> Array:
        try:
            array = strong(x)
        except TypeError as err:
            raise TypeError(
                f"Parameter '{jax.tree_util.keystr(path)}' is a {type(x).__name__}; parameters are real arrays."
            ) from err
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(
                f"Parameter '{jax.tree_util.keystr(path)}' has dtype {array.dtype}; parameters are real "
                "floating-point arrays."
            )
        return array

    return jax.tree_util.tree_map_with_path(leaf, params)


def _wide(x: Any) -> Any:
    return (
        jnp.asarray(x, jnp.float64)
        if getattr(x, "dtype", None) in (jnp.float64, jnp.float32, jnp.bfloat16, jnp.float16)
        else x
    )


def signature_of(tree: Any) -> Any:
    """Structure, shapes and dtypes of a tree: what a traced program depends on."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(
        (jnp.shape(x), str(x.dtype)) if hasattr(x, "dtype") else repr(x) for x in leaves
    )
