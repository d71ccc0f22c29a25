"""Refuse reparameterised values that make the result jump.

The pathwise gradient misses what a jump contributes. The static analysis finds the places where a value *may*
jump (comparison, cast, floor, argmax, branch); most of them are continuous in fact (leaky_relu, clip,
interpolation, support guards). On suspicion the traced program is evaluated: random segments in the site's
value space are bisected toward the larger change until their ends are neighbouring floating-point numbers. A
continuous program then changes by rounding only; a jump stays. Changes to an infinite or NaN value are loud
and pass.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._additive import split
from ._analyse import Analysed, axis_order
from ._engine import Unsuitable
from ._evaluate import Forced, evaluate
from ._strategy import Implicit, Reparam

NUM_SEGMENTS = 64
NUM_BISECTIONS = 64
MAX_GROUPS = 8
THRESHOLD = 1e-5


def suspicious_sites(program: Analysed) -> dict[int, str]:
    """Pathwise sites whose value may make the result, or the parameters of another site, jump; with the operation's name."""
    found: dict[Any, str] = dict(program.facts[program.result].jumps)
    for index in program.sites:
        found.update(program.facts.parameters[index].jumps)
    return {
        i: why
        for i, why in found.items()
        if isinstance(program.sites[i].strategy, Reparam | Implicit)
        and not program.sites[i].strategy.allow_jumps  # type: ignore[attr-defined]
    }


def check_jumps(program: Analysed, again: Callable[[bool], tuple[Analysed, list[Any]]]) -> None:
    """Raise if the result jumps in a pathwise site.

    Args:
        program: the analysed program.
        again: analyses the program on concrete inputs, in float64 if told so; returns it with its inputs.
            Called only on suspicion.

    Raises:
        Unsuitable: naming site, operation and remedy.
    """
    suspects = suspicious_sites(program)
    if not suspects:
        return
    with jax.ensure_compile_time_eval(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # NumPyro warns of values outside the support, which probing may meet
        try:
            with jax.enable_x64(True):
                sizes, threshold = _jump_sizes(suspects, *again(True)), THRESHOLD
        except (TypeError, ValueError):  # the program insists on float32: look for coarser jumps
            sizes, threshold = _jump_sizes(suspects, *again(False)), 1e-3
    for index, size in sizes.items():
        site = program.sites[index]
        if not np.isfinite(size) or size > threshold:
            found = (
                f"jumps by {size:.3g}"
                if np.isfinite(size)
                else "was not finite anywhere it was tried"
            )
            raise Unsuitable(
                site.name,
                f"Site '{site.address}': the result {found} as a function of its reparameterised value "
                f"(operation: {suspects[index]}), and a pathwise gradient misses jumps. Use 'reinforce' "
                f"or 'mvd', e.g. strategies={{'{site.name}': 'reinforce'}}, or smooth the jump; "
                "ppl.Reparam(allow_jumps=True) accepts the bias.",
            )


def _jump_sizes(suspects: dict[int, str], program: Analysed, inputs: list[Any]) -> dict[int, float]:
    return {i: _jump_size(program, i, inputs) for i in suspects}


def _jump_size(program: Analysed, index: int, inputs: list[Any]) -> float:
    """Largest change of an output, relative to 1 + |value|, that bisection could not remove.

    Outputs are the additive terms of the result that may jump, and log-probs of sites whose parameters may. A
    jump of a term counts only if the result jumps with it: pieces of a spline jump at a knot, their sum does
    not. Infinite if no output was finite.
    """
    closed, numbers, facts = program.closed, program.numbers, program.facts
    terms = [t.variable for t in split(closed.jaxpr, program.result, facts)]
    terms = [v for v in terms if index in facts[v].jumps]
    densities = [numbers[i].log_prob for i in program.sites if index in facts.parameters[i].jumps]
    read = [*terms, *densities, program.result]
    groups = np.arange(len(read) - 1) % MAX_GROUPS
    order = {i: list(np.argsort(axis_order(s))) for i, s in program.sites.items()}

    def draws(leaves: list[Any], key: jax.Array) -> dict[int, jax.Array]:
        atoms = [numbers[i].value for i in program.sites]
        return dict(zip(program.sites, evaluate(closed, [*leaves, key], {}, atoms), strict=True))

    def segment(key: jax.Array, number: jax.Array, group: jax.Array) -> tuple[jax.Array, jax.Array]:
        k1, k2, k3, k4 = jax.random.split(key, 4)
        # Every other segment leaves the given parameters (a jump may vanish there, as at zero-initialised
        # weights), and where the support is unbounded every third reaches far beyond two draws.
        # Relative noise keeps the sign of parameters that must be positive.
        noise = jnp.where(number % 2 == 1, 0.1, 0.0)
        keys = jax.random.split(k4, len(inputs))
        leaves = [
            x + (noise * jnp.where(x == 0, 1.0, x) * jax.random.normal(k, x.shape)).astype(x.dtype)
            for x, k in zip(inputs[:-1], keys[1:], strict=True)
        ]
        others, a, b = draws(leaves, k3), draws(leaves, k1)[index], draws(leaves, k2)[index]
        if program.sites[index].is_unbounded:
            reach = jnp.where(number % 3 == 2, 3.0, 0.0)
            a, b = a - reach * (b - a), b + reach * (b - a)

        def at(value: jax.Array) -> list[jax.Array]:
            values = others | {index: value}
            forced = {i: Forced(_marker_layout(v, order[i])) for i, v in values.items()}
            return [x.astype(float) for x in evaluate(closed, [*leaves, inputs[-1]], forced, read)]

        start = at(a)

        def change(x: list[jax.Array], y: list[jax.Array]) -> jax.Array:
            """Largest change in the outputs of this group, on the scale that they have at the segment's start."""
            return jnp.max(jnp.where(groups == group, jnp.stack(_changes(x, y, start)[:-1]), 0.0))

        def halve(_: Any, state: Any) -> Any:
            a, b, fa, fb = state
            m = (a + b) / 2
            fm = at(m)
            left = change(fa, fm) >= change(fm, fb)
            choose = lambda x, y: jax.tree.map(lambda u, v: jnp.where(left, u, v), x, y)  # noqa: E731
            return (*choose((a, m), (m, b)), *choose((fa, fm), (fm, fb)))

        _, _, fa, fb = jax.lax.fori_loop(0, NUM_BISECTIONS, halve, (a, b, start, at(b)))
        changes = jnp.stack(_changes(fa, fb, fa))
        # Terms may jump against each other: compare the result's own jump with theirs.
        in_result = jnp.abs(fb[-1] - fa[-1])
        absolute = jnp.stack([_largest(jnp.abs(y - x), x, y) for x, y in zip(fa, fb, strict=True)])
        is_term = np.arange(len(read) - 1) < len(terms)
        cancels = in_result <= 1e-6 * absolute[:-1] + 1e-12 * jnp.abs(fa[-1])
        sizes = jnp.where((groups == group) & ~(is_term & cancels), changes[:-1], 0.0)
        return sizes.max(), jnp.stack([jnp.isfinite(x).any() for x in fa[:-1]]).any()

    num_elements = math.prod(program.sites[index].sizes)
    num_segments = int(np.clip(4096 // max(num_elements, 1), 8, NUM_SEGMENTS))
    keys = jax.random.split(jax.random.key(0), num_segments)
    every = jax.vmap(segment, (None, None, 0))
    each = lambda x: every(*x, np.unique(groups))
    run = jax.jit(lambda keys: jax.lax.map(each, (keys, np.arange(num_segments)), batch_size=8))
    sizes, finite = run(keys)
    return float(sizes.max()) if bool(finite.any()) else float("inf")


def _largest(size: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """Largest size among elements that are finite at both ends: a change to infinity is loud."""
    return jnp.max(jnp.where(jnp.isfinite(x) & jnp.isfinite(y), size, 0.0), initial=0.0)


def _changes(x: list[jax.Array], y: list[jax.Array], scale: list[jax.Array]) -> list[jax.Array]:
    """Largest change of each output relative to 1 + |scale|."""
    parts = zip(x, y, scale, strict=True)
    return [
        _largest(jnp.abs(b - a) / (1 + jnp.nan_to_num(jnp.abs(s), posinf=0.0)), a, b)
        for a, b, s in parts
    ]


def _marker_layout(value: jax.Array, order: list[int]) -> jax.Array:
    return jnp.transpose(value, [int(i) for i in order] + list(range(len(order), value.ndim)))


def concrete(x: Any, example: Any = None) -> Any:
    """`x` itself where its value is known; else the example's first rows; else small random numbers."""
    if not isinstance(x, jax.core.Tracer):
        return x
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(0), x.shape) if x.shape else jax.random.key(0)
    if (
        example is not None
        and example.ndim == x.ndim
        and all(n <= m for n, m in zip(x.shape, example.shape, strict=True))
    ):
        return np.asarray(example)[tuple(slice(n) for n in x.shape)]
    rng = np.random.default_rng(0)
    if jnp.issubdtype(x.dtype, jnp.floating) and x.ndim < 2:  # legal for most constraints
        return np.asarray(rng.uniform(0.2, 0.8, size=x.shape), x.dtype)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return np.asarray(0.1 * rng.normal(size=x.shape), x.dtype)
    return np.asarray(rng.integers(0, 2, size=x.shape), x.dtype)


def concrete_tree(tree: Any, example: Any = None) -> Any:
    """`concrete` leaf by leaf; `example` is a tree of the same structure, or None."""
    leaves, structure = jax.tree.flatten(tree)
    examples, other = jax.tree.flatten(example)
    if other != structure:
        examples = [None] * len(leaves)
    return jax.tree.unflatten(
        structure,
        [
            concrete(x, e) if hasattr(x, "dtype") else x
            for x, e in zip(leaves, examples, strict=True)
        ],
    )
