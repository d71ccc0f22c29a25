"""A program of discrete latent sites as prior and likelihood of a point: the numbers of its values.

Terms: each element of each latent site is a coordinate, an integer from 0 to the size of its support - 1.
Invariant: supports are constants of the program, so that a coordinate means the same value at every draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from numpyro.primitives import Messenger

from .... import ppl
from ....ppl._types import Args, Message
from ....ppl.strategies import Enum, element, support_of
from ._static import Coordinates, Static, latent_sites, static_of

Array = jax.Array


def as_discrete(
    program: ppl.Program, args: Args, data_axis: str | None = None
) -> tuple[Static, tuple[int, ...]]:
    """Prior and likelihood of `program(*args)`, and the number of values of each coordinate.

    Args:
        program: the program; each latent site's values are finitely many, known when it is traced and the same at every draw.
        args: its arguments.
        data_axis: as for `as_static`.

    Raises:
        ValueError: another kind of latent site, no latent site, or nothing observed.
    """
    watched = FiniteSupports()

    def run(*args: PyTree) -> PyTree:
        with watched:
            return program(*args)

    trace, latent = latent_sites(ppl.as_program(run), args)
    supports = {name: _support(name, watched.laws.get(name, []), trace) for name in latent}
    shapes = {name: trace.choices[name].shape for name in latent}
    sizes = [math.prod(shapes[name]) for name in latent]
    cuts = np.cumsum(sizes)[:-1]

    def choices(u: Array) -> dict[str, Array]:
        parts = jnp.split(u.astype(int), cuts)
        return {
            name: jnp.asarray(supports[name])[part].reshape(shapes[name])
            for name, part in zip(latent, parts, strict=True)
        }

    def point(values: Mapping[str, Array]) -> Array:
        number = lambda name: jnp.argmax(values[name].ravel()[:, None] == supports[name][None], 1)
        return jnp.concatenate([number(name) for name in latent])

    no_volume = lambda u, x: jnp.zeros(())
    at = Coordinates(jnp.zeros(sum(sizes), int), choices, no_volume, point)
    counts = [len(supports[name]) for name in latent]
    return static_of(program, args, trace, at, data_axis), tuple(np.repeat(counts, sizes).tolist())


class FiniteSupports(Messenger):
    """Collects supports of sites, or why they are none."""

    only_watches = True  # programs that let no handler act on them let it stay

    def __init__(self) -> None:
        super().__init__()
        self.laws: dict[str, list[np.ndarray | str]] = {}

    def process_message(self, msg: Message) -> None:
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        base, _ = element(msg["fn"])
        problem = Enum().refuse(base)
        if problem is None and base.event_dim:
            problem = (
                f"needs values of one number each, but those of {type(base).__name__} are vectors"
            )
        self.laws.setdefault(msg["name"], []).append(problem or support_of(base))


def _support(name: str, found: list[np.ndarray | str], trace: ppl.Trace) -> np.ndarray:
    told = [x for x in found if isinstance(x, str)]
    if not told and (not found or any(not np.array_equal(found[0], x) for x in found)):
        told = ["needs one known support, and this site has none or several"]
    if not told and trace.sites[name].regions:
        told = ["moves sites outside of scans and branches"]
    if told:
        raise ValueError(
            f"Site '{name}': kernel Gibbs {told[0]}. Sum discrete sites out and keep HMC() for continuous ones, code the values "
            "as Categorical ones, or use smc on the program."
        )
    return found[0]  # type: ignore[return-value]
