"""The reward of a tilt as a function of some of its latent sites, where it reads no others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ...ppl._compat import ClosedJaxpr, jaxpr_as_fun, no_handlers, without_dead_code
from ...ppl.language import name_of
from ...ppl.traces import stand_ins
from ._tilt import TiltedProgram


def shapes_of(tilt: TiltedProgram, args: tuple[PyTree, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    """Of the latent sites."""
    with stand_ins(), no_handlers():
        return jax.eval_shape(lambda key: tilt.base.simulate(key, *args).choices, jax.random.key(0))


def partial_log_weight(
    who: str, tilt: TiltedProgram, names: Sequence[str], args: tuple[PyTree, ...] = ()
) -> Callable[[Mapping[str, Array]], Float[Array, ""]]:
    """From values of some latent sites to the log-weight r / b of the tilt, in nats.

    Args:
        who: asks for it.
        tilt: the tilt.
        names: of the sites.
        args: of the program.

    Raises:
        ValueError: the reward reads a site that is not among them.
    """
    shapes = shapes_of(tilt, args)
    given = {n: shapes[n] for n in names}
    rest = {n: shape for n, shape in shapes.items() if n not in given}

    def whole(given: Mapping[str, Array], rest: Mapping[str, Array]) -> Array:
        with no_handlers():
            return tilt.log_weight(tilt.base.trace({**given, **rest}, *args).retval)

    closed = jax.make_jaxpr(whole)(given, rest)
    jaxpr, is_used = without_dead_code(closed.jaxpr)
    sites = [*sorted(given), *sorted(rest)]
    if read := [n for n, used in zip(sites, is_used, strict=True) if used and n in rest]:
        raise ValueError(
            f"{who}: reward '{name_of(tilt.reward)}' reads {read}, and only {sorted(given)} are given. Let the program return "
            f"what depends on {sorted(given)} alone, or give all that it reads."
        )
    run = jaxpr_as_fun(ClosedJaxpr(jaxpr, closed.consts))

    def log_weight(values: Mapping[str, Array]) -> Array:
        leaves = [
            jnp.asarray(values[n], given[n].dtype)
            for n, used in zip(sites, is_used, strict=True)
            if used
        ]
        return run(*leaves)[0]

    return log_weight
