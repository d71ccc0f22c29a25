"""Refuse reparameterised values that make the result jump.

The pathwise gradient misses what a jump contributes. The static analysis finds the places where a value *may*
jump (comparison, cast, floor,
argmax, branch); most of them are continuous in fact (leaky_relu, clip, interpolation, support guards). On
suspicion the traced program is
evaluated: random segments in the site's value space are bisected toward the larger change until their ends
are neighbouring floating-point
numbers. A continuous program then changes by rounding only; a jump stays. Changes to an infinite or NaN value
are loud and pass.
"""

from __future__ import annotations

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


def check_jumps(
    program: Analysed,
    in_double: Callable[[], tuple[Analysed, list[Any], list[Any]]],
    inputs: list[Any],
) -> None:
    """Raise if the result jumps in a pathwise site.

    Args:
        program: the analysed program.
        in_double: analyses the program again in float64, on concrete inputs; returns it with its inputs and
            constants.
        inputs: leaves of the parameters, then the key (concrete).

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
        consts = [concrete(c) for c in program.closed.consts]
        try:
            with jax.enable_x64(True):
                doubled, inputs64, consts64 = in_double()
                sizes = {i: _jump_size(doubled, i, inputs64, consts64) for i in suspects}
            threshold = THRESHOLD
        except (TypeError, ValueError):  # the program insists on float32: look for coarser jumps
            sizes = {i: _jump_size(program, i, inputs, consts) for i in suspects}
            threshold = 1e-3
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
                "(operation: "
                f"{suspects[index]}), and a pathwise gradient misses jumps. Use 'reinforce' or 'mvd', e.g. "
                f"strategies={{'{site.name}': 'reinforce'}}, or smooth the jump; "
                "ppl.Reparam(allow_jumps=True) accepts the bias.",
            )


def _jump_size(program: Analysed, index: int, inputs: list[Any], consts: list[Any]) -> float:
    """Largest change, relative to 1 + |value|, that bisection could not remove; infinite if nothing was finite."""
    closed, numbers = program.closed.replace(consts=consts), program.numbers
    terms = split(closed.jaxpr, program.result, program.facts)
    read = [t.variable for t in terms] + [numbers[i].log_prob for i in program.sites if i != index]
    order = {i: list(np.argsort(axis_order(s))) for i, s in program.sites.items()}

    def outputs(values: dict[int, jax.Array]) -> jax.Array:
        forced = {i: Forced(_marker_layout(v, order[i])) for i, v in values.items()}
        outs = evaluate(closed, inputs, forced, read)
        return jnp.concatenate([jnp.ravel(x).astype(float) for x in outs])

    def draws(key: jax.Array) -> dict[int, jax.Array]:
        values = evaluate(
            closed, [*inputs[:-1], key], {}, [numbers[i].value for i in program.sites]
        )
        return dict(zip(program.sites, values, strict=True))

    def change(x: jax.Array, y: jax.Array) -> jax.Array:
        size = jnp.abs(y - x) / (1 + jnp.abs(x))
        return jnp.where(jnp.isfinite(x) & jnp.isfinite(y), size, 0.0).max()

    def segment(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        k1, k2, k3 = jax.random.split(key, 3)
        others, a, b = draws(k3), draws(k1)[index], draws(k2)[index]
        at = lambda v: outputs(others | {index: v})  # noqa: E731

        def halve(_: Any, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            a, b = ends
            m = (a + b) / 2
            fa, fm, fb = at(a), at(m), at(b)
            left = change(fa, fm) >= change(fm, fb)
            return jnp.where(left, a, m), jnp.where(left, m, b)

        a, b = jax.lax.fori_loop(0, NUM_BISECTIONS, halve, (a, b))
        fa = at(a)
        return change(fa, at(b)), jnp.isfinite(fa).any()

    sizes, finite = jax.jit(jax.vmap(segment))(jax.random.split(jax.random.key(0), NUM_SEGMENTS))
    return float(sizes.max()) if bool(finite.any()) else float("inf")


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
        return jnp.asarray(example[tuple(slice(n) for n in x.shape)], x.dtype)
    rng = np.random.default_rng(0)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype)
    return jnp.asarray(rng.integers(0, 2, size=x.shape), x.dtype)


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
