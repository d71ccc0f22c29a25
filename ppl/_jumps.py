"""Refuse reparameterised values that make the result jump.

The pathwise gradient misses what a jump contributes. The static analysis finds the places where a value *may*
jump (comparison, cast, floor, argmax, branch); most of them are continuous in fact (leaky_relu, clip,
interpolation, support guards). On suspicion the traced program is evaluated along random segments in the site's
value space (`_jump_probe.py`). Changes to an infinite or NaN value are loud and pass.

Noise of `ppl.rng_key` is treated alike: where it meets parameters in such an operation, segments in the space of
the parameters are searched, with all noise and all sites kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._analyse import Analysed
from ._compat import is_concrete
from ._engine import Unsuitable
from ._jump_probe import jump_sizes
from ._strategy import Pathwise

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
    if strategy.is_relaxed or strategy.is_partly_pathwise:
        return True
    return isinstance(strategy, Pathwise) and not strategy.allow_jumps


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
                sizes, threshold = jump_sizes(suspects, *again(True)), THRESHOLD
        except (TypeError, ValueError):  # the program insists on float32: look for coarser jumps
            sizes, threshold = jump_sizes(suspects, *again(False)), 1e-3
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
