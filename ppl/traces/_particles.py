"""A function run as independent particles: a `vmap` in which each has its own key."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import Array, PyTree

from ._in_step import (
    are_exploring,
    axis_name,
    explored,
    first_step,
    merge_all,
    pop_all,
    push_all,
    recorders_around,
    repeated,
)
from ._recorder import RegionState
from ._sites import Region
from ._steps_given import leading


class particles:
    """`particles(K)(fn)` runs `fn` as K independent particles; results and sites get a leading particle axis of size K.

    Args:
        num_particles: K, at least 1.

    Raises:
        ValueError: `num_particles` is no integer of at least 1.
        TypeError: it is used as a context.

    Example:
        >>> from lapilli import ppl
        >>> import jax, numpyro.distributions as dist
        >>> def pair():
        ...     return ppl.particles(2)(lambda: ppl.sample("z", dist.Normal(0, 1)))()
        >>> ppl.model(pair).simulate(jax.random.key(0)).choices["z"].shape
        (2,)
    """

    def __init__(self, num_particles: int) -> None:
        if not isinstance(num_particles, int) or num_particles < 1:
            raise ValueError(
                f"ppl.particles: the number of particles must be an integer >= 1, got {num_particles!r}."
            )
        self.num_particles = num_particles

    def __enter__(self) -> None:
        raise TypeError(
            "ppl.particles(K) is not a context: a particle is a function. Write "
            "ppl.particles(K)(fn)(*args); use ppl.plate for independent rows of one run."
        )

    def __exit__(self, *_: object) -> None:
        """Never reached."""

    def __call__(self, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """The function that runs `fn` as K particles with the same arguments."""

        def runs(*args: PyTree, **kwargs: PyTree) -> tuple[Array, Array]:
            size, recorders = self.num_particles, recorders_around()
            if not recorders:
                raise RuntimeError(
                    "ppl.particles(K) runs inside ppl.expectation, an objective or a program's own "
                    "methods (simulate, log_density, ...), which hold the random key; here there is "
                    "none. Call it in a program, and run that."
                )
            threads = [r.open_region("particles") for r in recorders]
            keys = [None if key is None else jax.random.split(key, size) for key, _ in threads]
            slices = [leading(forced, size) for _, forced in threads]
            is_explored = are_exploring(recorders)
            first = explored(
                recorders, lambda: first_step((keys, slices)), lambda: fn(*args, **kwargs)
            )
            if is_explored:
                return repeated(first, size)
            frames: list[RegionState] = []

            def one(key: PyTree, forced: list[dict[str, PyTree]]) -> tuple[PyTree, PyTree]:
                push_all(recorders, "particles", key, forced)
                out = fn(*args, **kwargs)
                frames[:], numbers = pop_all(recorders)
                return out, numbers

            out, numbers = jax.vmap(one, axis_size=size)(keys, slices)
            merge_all(
                recorders,
                frames,
                numbers,
                Region("particles", axis_name(recorders, "particles"), size),
            )
            return out

        return runs
