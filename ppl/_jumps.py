"""Refuse reparameterised values that make the result jump.

The pathwise gradient misses what a jump contributes. The static analysis finds the places where a value *may*
jump (comparison, cast, floor, argmax, branch); most of them are continuous in fact (leaky_relu, clip,
interpolation, support guards). On suspicion the traced program is evaluated: random segments in the site's
value space are bisected toward the larger change until their ends are neighbouring floating-point numbers. A
continuous program then changes by rounding only; a jump stays. Changes to an infinite or NaN value are loud
and pass.

Noise of `ppl.rng_key` is treated alike: where it meets parameters in such an operation, segments in the space of
the parameters are bisected, with all noise and all sites kept.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from ._additive import split
from ._analyse import Analysed, axis_order
from ._compat import is_concrete
from ._engine import Unsuitable
from ._evaluate import Forced, evaluate
from ._strategy import Pathwise

NUM_SEGMENTS = 64
NUM_BISECTIONS = 64
MAX_GROUPS = 8
THRESHOLD = 1e-5


def suspects_of(program: Analysed) -> dict[int | str, str]:
    """What may make the result, or the parameters of another site, jump; with the operation's name.

    Pathwise and relaxed sites by index, and addresses of random keys whose noise jumps as parameters move.
    """
    found = dict(program.facts[program.result].jumps)
    for index in program.sites:
        found.update(program.facts.parameters[index].jumps)
    return {source: why for source, why in found.items() if _is_checked(program, source)}


def _is_checked(program: Analysed, source: int | str) -> bool:
    if isinstance(source, str):
        return True
    strategy = program.sites[source].strategy
    return strategy.is_relaxed or isinstance(strategy, Pathwise) and not strategy.allow_jumps


def check_jumps(program: Analysed, again: Callable[[bool], tuple[Analysed, list[Any]]]) -> None:
    """Raise if the result jumps in a pathwise site, or in the parameters at fixed noise.

    Args:
        program: the analysed program.
        again: analyses the program on concrete inputs, in float64 if told so; returns it with its inputs.
            Called only on suspicion.

    Raises:
        Unsuitable: naming site, operation and remedy.
        ValueError: naming the random key, operation and remedy.
    """
    suspects = suspects_of(program)
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
    for source, size in sizes.items():
        if not np.isfinite(size) or size > threshold:
            found = (
                f"jumps by {size:.3g}"
                if np.isfinite(size)
                else "was not finite anywhere it was tried"
            )
            raise _refusal(program, source, found, suspects[source])


def _refusal(program: Analysed, source: int | str, found: str, operation: str) -> ValueError:
    if isinstance(source, str):
        return ValueError(
            f"ppl.rng_key('{source.removeprefix('rng:')}'): at fixed noise the result {found} as a function of the "
            f"parameters (operation: {operation}), and the gradient misses jumps. Noise of a key must not be thresholded "
            "by a parameter: make the draw a site, ppl.sample(name, distribution), with a strategy."
        )
    site = program.sites[source]
    if site.strategy.is_relaxed:
        return Unsuitable(
            site.name,
            f"Site '{site.address}': the result {found} as a function of its relaxed value (operation: {operation}), and "
            f"the derivative that strategy '{site.strategy.name}' takes there misses jumps. Use 'disarm', 'reinforce' or "
            f"ppl.Relax, e.g. strategies={{'{site.name}': 'reinforce'}}, or write the cost without the jump.",
        )
    return Unsuitable(
        site.name,
        f"Site '{site.address}': the result {found} as a function of its reparameterised value "
        f"(operation: {operation}), and a pathwise gradient misses jumps. Use 'reinforce' "
        f"or 'mvd', e.g. strategies={{'{site.name}': 'reinforce'}}, or smooth the jump; "
        "ppl.Reparam(allow_jumps=True) accepts the bias.",
    )


def _jump_sizes(
    suspects: dict[int | str, str], program: Analysed, inputs: list[Any]
) -> dict[int | str, float]:
    return {source: _jump_size(program, source, inputs) for source in suspects}


def _jump_size(program: Analysed, source: int | str, inputs: list[Any]) -> float:
    """Largest change of an output, relative to 1 + |value|, that bisection could not remove.

    Outputs are the additive terms of the result that may jump, and log-probs of sites whose parameters may. A
    jump of a term counts only if the result jumps with it: pieces of a spline jump at a knot, their sum does
    not. Infinite if no output was finite.
    """
    closed, numbers, facts = program.closed, program.numbers, program.facts
    terms = [t.variable for t in split(closed.jaxpr, program.result, facts)]
    terms = [v for v in terms if source in facts[v].jumps]
    densities = [numbers[i].log_prob for i in program.sites if source in facts.parameters[i].jumps]
    read = [*terms, *densities, program.result]
    groups = np.arange(len(read) - 1) % MAX_GROUPS
    order = {i: list(np.argsort(axis_order(s))) for i, s in program.sites.items()}

    def segment(
        closed: ClosedJaxpr, inputs: list[Any], key: jax.Array, number: jax.Array, group: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def draws(leaves: list[Any], key: jax.Array) -> dict[int, jax.Array]:
            atoms = [numbers[i].value for i in program.sites]
            values = evaluate(closed, [*leaves, key], {}, atoms)
            return dict(zip(program.sites, values, strict=True))

        k1, k2, k3, k4 = jax.random.split(key, 4)
        # Every other segment leaves the given parameters (a jump may vanish there, as at zero-initialised
        # weights), and where the support is unbounded every third reaches far beyond two draws.
        leaves = _moved(inputs[:-1], k4, jnp.where(number % 2 == 1, 0.1, 0.0))
        others = draws(leaves, k3)
        if isinstance(source, str):
            noise_key, a, b = k1, leaves, _moved(leaves, k2, jnp.where(number % 4 < 2, 0.1, 1.0))
        else:
            noise_key, a, b = inputs[-1], draws(leaves, k1)[source], draws(leaves, k2)[source]
            if program.sites[source].strategy.is_relaxed:
                # Between hard values: start anywhere between two of them.
                k5, k6 = jax.random.split(jax.random.fold_in(key, 1))
                share, third = jax.random.uniform(k5), draws(leaves, k6)[source]
                a = a + jnp.where(number % 2 == 0, share, 0.0) * (third - a)
            if program.sites[source].is_unbounded:
                reach = jnp.where(number % 3 == 2, 3.0, 0.0)
                a, b = a - reach * (b - a), b + reach * (b - a)

        def at(point: Any) -> list[jax.Array]:
            params, values = (
                (point, others) if isinstance(source, str) else (leaves, others | {source: point})
            )
            forced = {i: Forced(_marker_layout(v, order[i])) for i, v in values.items()}
            return [x.astype(float) for x in evaluate(closed, [*params, noise_key], forced, read)]

        start = at(a)

        def change(x: list[jax.Array], y: list[jax.Array]) -> jax.Array:
            """Largest change in the outputs of this group, on the scale that they have at the segment's start."""
            return jnp.max(jnp.where(groups == group, jnp.stack(_changes(x, y, start)[:-1]), 0.0))

        def halve(_: Any, state: Any) -> Any:
            a, b, fa, fb = state
            m = jax.tree.map(lambda x, y: (x + y) / 2, a, b)
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

    num_elements = sum(
        [math.prod(program.sites[source].sizes)]
        if isinstance(source, int)
        else [x.size for x in inputs[:-1]]
    )
    num_segments = int(np.clip(4096 // max(num_elements, 1), 8, NUM_SEGMENTS))
    keys = jax.random.split(jax.random.key(0), num_segments)

    @jax.jit
    def run(consts: list[Any], inputs: list[Any]) -> tuple[jax.Array, jax.Array]:
        """Data are operands: XLA would fold what it can compute from constants, slowly."""
        one = functools.partial(segment, ClosedJaxpr(closed.jaxpr, consts), inputs)
        every = jax.vmap(one, (None, None, 0))
        each = lambda x: every(x[0], x[1], jnp.asarray(np.unique(groups)))
        return jax.lax.map(each, (keys, np.arange(num_segments)), batch_size=8)

    sizes, finite = run(closed.consts, inputs)
    return float(sizes.max()) if bool(finite.any()) else float("inf")


def _moved(leaves: list[Any], key: jax.Array, scale: jax.Array) -> list[Any]:
    """Parameters with relative noise, which keeps the sign of those that must be positive (mostly); zeros get absolute noise."""
    keys = jax.random.split(key, len(leaves) + 1)[1:]
    return [
        x + (scale * jnp.where(x == 0, 1.0, x) * jax.random.normal(k, x.shape)).astype(x.dtype)
        for x, k in zip(leaves, keys, strict=True)
    ]


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
    if is_concrete(x):
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
