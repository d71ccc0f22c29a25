"""`ppl.expectation`: the value and gradient of an expected value."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import PyTree

from .._compat import typed_key
from .._own_jit import OwnJit
from .._types import Args, Key
from ..analysis import Analysed, Plan, plan_of
from ..checks import (
    CheckJumps,
    as_arrays,
    as_number,
    shape_of_input,
    signature_of,
    watched,
)
from ..distributions import sound
from ..evaluation import stacked
from ..language import apply, joined
from ..strategies import Decision
from ._again import check_derivatives, moving, refusal_of_jump, slope_of
from ._checked import CheckedPrograms
from ._controlled import WithCoefficients, check_replicates, mean_of_halves, refuse_twice
from ._estimate import surrogate_of

Array = jax.Array


class Expectation:
    """L(params) = E[fn(params, *args)] over the draws that `fn` makes. Made by `ppl.expectation`."""

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
        self._twice: set[Any] = set()  # signatures at which the gradient may be differentiated
        # What is compiled holds rules that look at the programs later on. Of this object they must not know: JAX keeps a compiled
        # function until nothing leads to it, and its rules would.
        without_compiled = copy.copy(self)
        self._compiled = OwnJit(without_compiled._estimate)
        self._compiled_value = OwnJit(without_compiled._surrogate)

    def value(self, params: PyTree, key: PyTree, *args: PyTree, **kwargs: PyTree) -> Array:
        """One estimate of L (scalar, the unit of `fn`). Its derivative under `jax.grad` is the estimator of `grad`.

        Args:
            params: the first argument of `fn`, a pytree whose floating-point leaves are differentiated.
            key: PRNG key of either kind.
            args: the arguments of `fn` after the parameters.
            kwargs: its keyword arguments.
        """
        params, args = as_arrays(params), joined(args, kwargs)
        with self.programs.shown(params, args):
            return self._compiled_value(params, typed_key(key), args)

    def grad(self, params: PyTree, key: Key, *args: PyTree, **kwargs: PyTree) -> PyTree:
        """One estimate of dL/dparams, a pytree like `params`.

        Args:
            params: the first argument of `fn`, a pytree whose floating-point leaves are differentiated.
            key: PRNG key of either kind.
            args: the arguments of `fn` after the parameters.
            kwargs: its keyword arguments.
        """
        return self.step(params, None, key, *joined(args, kwargs))[1]

    def value_and_grad(
        self, params: PyTree, key: Key, *args: PyTree, **kwargs: PyTree
    ) -> tuple[Array, PyTree]:
        """One estimate of L and of its gradient, from the same draws.

        Args:
            params: the first argument of `fn`, a pytree whose floating-point leaves are differentiated.
            key: PRNG key of either kind.
            args: the arguments of `fn` after the parameters.
            kwargs: its keyword arguments.
        """
        return self.step(params, None, key, *joined(args, kwargs))[:2]

    def step(
        self, params: PyTree, state: PyTree, key: Key, *args: PyTree, **kwargs: PyTree
    ) -> tuple[Array, PyTree, PyTree]:
        """Value, gradient and the next state of baselines; `state` None starts afresh.

        Args:
            params: the first argument of `fn`, a pytree whose floating-point leaves are differentiated.
            state: of the baselines, by `init_state` or the step before; None starts afresh.
            key: PRNG key of either kind.
            args: the arguments of `fn` after the parameters.
            kwargs: its keyword arguments.
        """
        params, args = as_arrays(params), joined(args, kwargs)
        with self.programs.shown(params, args):
            return self._compiled(params, state, typed_key(key), args)

    def init_state(self, params: PyTree, *args: PyTree, **kwargs: PyTree) -> dict[str, PyTree]:
        """The initial state of baselines and control variates: site -> state.

        Args:
            params: the first argument of `fn`, a pytree whose floating-point leaves are differentiated.
            args: the arguments of `fn` after the parameters.
            kwargs: its keyword arguments.
        """
        return _fresh_state(self.ready(params, *joined(args, kwargs)))

    def plan(self, params: PyTree, *args: PyTree, **kwargs: PyTree) -> Plan:
        """What each site will get, why, and what it costs; printing it shows a table. Runs every check.

        Args:
            params: the first argument of `fn`, a pytree whose floating-point leaves are differentiated.
            args: the arguments of `fn` after the parameters.
            kwargs: its keyword arguments.
        """
        args = joined(args, kwargs)
        plan = plan_of(self.ready(params, *args))
        return dataclasses.replace(plan, search=self.programs.outcome(as_arrays(params), args))

    def ready(self, params: PyTree, *args: PyTree, **kwargs: PyTree) -> Analysed:
        """The analysed program, with every check done.

        Args:
            params: the first argument of `fn`, a pytree whose floating-point leaves are differentiated.
            args: the arguments of `fn` after the parameters.
            kwargs: its keyword arguments.
        """
        params, args = as_arrays(params), joined(args, kwargs)
        with self.programs.shown(params, args):
            return self._program(params, args)

    def _program(
        self, params: PyTree, args: tuple[PyTree, ...], key_impl: object = None
    ) -> Analysed:
        program = self.programs.program(params, args, key_impl)
        if program.is_controlled:
            check_replicates(program.num_replicates)
        return program

    def _surrogate(self, params: PyTree, key: Array, args: tuple[PyTree, ...]) -> Array:
        program = self._watched(params, args, jax.random.key_impl(key))
        return self._surrogate_of(program, params, args, key, _fresh_state(program))[0]

    def _surrogate_of(
        self, program: Analysed, params: PyTree, args: tuple[PyTree, ...], key: Array, state: PyTree
    ) -> tuple[Array, dict[str, PyTree]]:
        leaves = jax.tree.leaves(params)
        if not program.is_controlled:
            return surrogate_of(program, leaves, key, state, self._again(params, args))
        half = program.num_replicates // 2

        def surrogate(
            is_single: bool, key: Array, inputs: tuple[PyTree, ...]
        ) -> tuple[Array, PyTree]:
            fn, number = WithCoefficients(self.programs.fn), 1 if is_single else half
            part = self.programs.checked_before(fn, number, params, inputs, args)
            part = self._with_watch(part, params, args, inputs)
            return surrogate_of(part, leaves, key, state, refuse_twice)

        return mean_of_halves(surrogate, program.num_replicates, key, args)

    def _estimate(
        self, params: PyTree, state: dict[str, PyTree] | None, key: Array, args: tuple[PyTree, ...]
    ) -> tuple[Array, PyTree, PyTree]:
        program = self._watched(params, args, jax.random.key_impl(key))
        leaves, tree = jax.tree.flatten(params)
        state = _fresh_state(program) if state is None else state

        states: list[PyTree] = []

        def flat(*leaves: Array) -> list[Array]:
            params = jax.tree.unflatten(tree, leaves)
            found = self._surrogate_of(program, params, args, key, state)
            numbers, structure = jax.tree.flatten(found[1])
            states.append(structure)
            return [found[0], *numbers]

        short = stacked(flat)

        def surrogate(leaves: list[Array]) -> tuple[Array, dict[str, PyTree]]:
            value, *numbers = short(*leaves)
            return value, jax.tree.unflatten(states[-1], numbers)

        (value, state), grads = jax.value_and_grad(surrogate, has_aux=True)(leaves)
        if program.may_have_null_values:
            grads = sound(grads)
        return value, jax.tree.unflatten(tree, grads), state

    def _watched(self, params: PyTree, args: tuple[PyTree, ...], key_impl: object) -> Analysed:
        """The checked program, which checks derivatives in its arguments as well, if somebody takes them."""
        return self._with_watch(self._program(params, args, key_impl), params, args, args)

    def _with_watch(
        self,
        program: Analysed,
        params: PyTree,
        args: tuple[PyTree, ...],
        inputs: tuple[PyTree, ...],
    ) -> Analysed:
        """A program of `inputs`: the arguments, which may have coefficients before them."""
        shapes = jax.tree.map(shape_of_input, (params, args))
        shift = len(inputs) - len(args)
        search = (
            (lambda leaf: self._with_argument(leaf - shift, *shapes))
            if self.programs.check_jumps
            else None
        )
        return watched(program, inputs, search)

    def _again(self, params: PyTree, args: tuple[PyTree, ...]) -> Callable[[], None]:
        """What to do when a gradient is differentiated: see that it is one, and search it for jumps, once per shape."""
        shapes = jax.tree.map(
            shape_of_input, (params, args)
        )  # the rule outlives this trace: it must not hold its tracers
        signature = signature_of(shapes)

        def check() -> None:
            if signature in self._twice:
                return
            plain = Expectation(self.programs.fn, self.programs.strategies, check_jumps=False)
            if self.programs.check_jumps:
                self._search_gradient(plain, *shapes)
            _ready(plain, *shapes, use=lambda program: check_derivatives(program.closed.jaxpr))
            self._twice.add(signature)

        return check

    def _search_gradient(self, plain: Expectation, params: PyTree, args: PyTree) -> None:
        """Refuse a gradient that jumps at fixed noise."""
        split = lambda params, args: ((params, moving(args)[0]), (moving(args)[1],))
        inner = Expectation(
            slope_of(plain.value),
            check_jumps=self.programs.check_jumps,
            examples=[split(*known) for known in self.programs.examples],
        )
        try:
            _ready(inner, *split(params, args))
        except ValueError as err:
            raise refusal_of_jump(err) from err

    def _with_argument(self, number: int, params: PyTree, args: PyTree) -> None:
        """Run every check with leaf `number` of the arguments among the parameters."""
        if not self.programs.examples:
            raise ValueError(
                "It may decide a comparison with noise, and no values are known for a search for jumps. Call the expectation "
                "once with numbers, outside of jit and vmap, before it is differentiated there."
            )
        structure = jax.tree.structure(args)

        def move(leaves: list[PyTree]) -> tuple[PyTree, list[PyTree]]:
            return leaves[number], [*leaves[:number], None, *leaves[number + 1 :]]

        def fn(both: PyTree, leaves: list[PyTree]) -> PyTree:
            whole = [*leaves[:number], both[1], *leaves[number + 1 :]]
            return apply(self.programs.fn, (both[0], *jax.tree.unflatten(structure, whole)))

        examples = []
        for known, others in self.programs.examples:
            value, rest = move([as_number(x) for x in jax.tree.leaves(others)])
            examples.append(((known, value), (rest,)))
        inner = Expectation(
            fn,
            self.programs.strategies,
            num_replicates=self.programs.num_replicates,
            check_jumps=self.programs.check_jumps,
            examples=examples,
        )
        moved, rest = move(jax.tree.leaves(args))
        _ready(inner, (params, moved), (rest,))


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


def _fresh_state(program: Analysed) -> dict[str, PyTree]:
    sites = [s for s in program.sites.values() if not isinstance(s.strategy, Decision)]
    return {s.address: s.strategy.init_state() for s in sites}


def _ready(
    expectation: Expectation,
    params: PyTree,
    args: Args,
    use: Callable[[Analysed], None] = lambda program: None,
) -> None:
    """Every check of an expectation at inputs of which only shapes are known; `use` sees the program."""
    import equinox as eqx

    arrays, static = eqx.partition((params, args), lambda x: isinstance(x, jax.ShapeDtypeStruct))

    def run(arrays: tuple[Array | tuple[Array, PyTree], tuple[PyTree, ...]]) -> int:
        params, args = eqx.combine(arrays, static)
        use(expectation.ready(params, *args))
        return 0

    jax.eval_shape(run, arrays)
