"""Langevin moves after each step of a corrected diffusion: a predictor-corrector."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ...ppl._checks import check_counts
from ..particles.moves import accept
from . import _points as points
from ._composition import Composition


@dataclasses.dataclass(frozen=True)
class Langevin:
    """Moves that leave the target p_n of a step as it is, made after the step; its weight is not touched.

        x' = x + eps/2 grad log p_n(x) + sqrt(eps) xi,   eps = step_size variance_n / max(W, 1),

    W the sum of the positive exponents, variance_n that of the noise at the step's end. Each move evaluates the models once more.

    Args:
        num_moves: moves after each step.
        step_size: of a move, relative to the narrowest law that p_n can be; below 4 for stability.
        method: "mala" accepts by Metropolis' rule, which needs the log_density of all models; "ula" accepts always; "auto"
            takes "mala" where it can.

    Raises:
        ValueError: `num_moves` is below 1, `step_size` outside of (0, 4), or the method unknown.

    Validity: "mala" leaves p_n invariant, so that with "exact" weights the evidence stays unbiased. "ula" does so as
    step_size -> 0 only.

    Reference: Song et al. 2021, arXiv:2011.13456, algorithms 4 and 5 (predictor-corrector); Roberts and Tweedie 1996 (MALA).
    """

    num_moves: int = 1
    step_size: float = 0.5
    method: Literal["auto", "mala", "ula"] = "auto"

    def __post_init__(self) -> None:
        check_counts("Langevin", num_moves=self.num_moves)
        if self.method not in ("auto", "mala", "ula"):
            raise ValueError(
                f"Langevin: method must be 'auto', 'mala' or 'ula', got {self.method!r}."
            )
        if not 0 < self.step_size < 4:
            raise ValueError(
                f"Langevin: step_size must lie between 0 and 4, where moves are stable, got {self.step_size:g}."
            )

    def is_metropolis(self, composition: Composition) -> bool:
        """Whether moves are accepted by Metropolis' rule; refuses it where densities are not known."""
        known = [m.log_density is not None for m in composition.models]
        if self.method == "mala" and not all(known):
            raise ValueError(
                f"fkc: MALA needs the log_density of every model, and model {known.index(False)} has none. Use method='ula' "
                "with small steps."
            )
        return self.method != "ula" and all(known)


def moved(
    corrector: Any, langevin: Langevin, key: Array, state: PyTree, n: Array, unit: Array
) -> Any:
    """The state after the moves at the target of step n; `unit` is that of the step size."""
    size = langevin.step_size * unit
    is_metropolis = langevin.is_metropolis(corrector.composition)

    def move(state: PyTree, key: Array) -> tuple[PyTree, None]:
        noise_key, accept_key = jax.random.split(key)
        noise, here = points.noise_like(noise_key, state.x), corrector.slope(state, n)
        x = jax.tree.map(
            lambda x, g, e: x + 0.5 * size * g + jnp.sqrt(size) * e, state.x, here, noise
        )
        new = corrector.at(x, n, None)
        if not is_metropolis:
            return new, None
        # log q(x | x') - log q(x' | x), without dividing by a step size that vanishes with the noise.
        back = lambda e, g, h: jnp.square(e) - jnp.square(e + 0.5 * jnp.sqrt(size) * (g + h))
        ratio = 0.5 * points.total(back, noise, here, corrector.slope(new, n))
        ratio = ratio + corrector.log_target(new, n) - corrector.log_target(state, n)
        choice = lambda old, new: accept(accept_key, old, new, ratio)[0]
        return jax.tree.map(choice, state, new), None

    return jax.lax.scan(move, state, jax.random.split(key, langevin.num_moves))[0]
