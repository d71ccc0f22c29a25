"""Real matrices with eigenvalues in a declared set."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from ... import ppl
from ...ppl._types import ParamMap


class Spectrum(NamedTuple):
    """Eigenvalues of a real matrix: complex pairs r e^{+-i theta}, 0 < theta < pi, and real ones between -R and R.

    Attributes:
        num_states: size of the matrix, the number of eigenvalues.
        max_modulus: R, which no modulus reaches; None: any.
        num_on_circle: how many of the pairs have modulus 1 exactly; they come first.
        num_real: real eigenvalues; the others come in pairs. None: one if the size is odd, else none.
    """

    num_states: int
    max_modulus: float | None = 1.0
    num_on_circle: int = 0
    num_real: int | None = None

    @property
    def num_pairs(self) -> int:
        """Number of pairs of complex eigenvalues."""
        num_real = self.num_states % 2 if self.num_real is None else self.num_real
        return (self.num_states - num_real) // 2

    def check(self) -> None:
        """Refuse numbers that fit no real matrix."""
        left = self.num_states - 2 * self.num_pairs
        if self.num_states < 1 or left < 0 or (self.num_real is not None and left != self.num_real):
            raise ValueError(
                f"Spectrum: {self.num_states} eigenvalues of which num_real={self.num_real} are real: complex ones come in "
                "pairs. Choose num_real from 0 to num_states, so that the rest is even."
            )
        if not 0 <= self.num_on_circle <= self.num_pairs:
            raise ValueError(
                f"Spectrum: num_on_circle={self.num_on_circle} of {self.num_pairs} complex pairs: choose at most as many."
            )
        if self.max_modulus is not None and not self.max_modulus > 0:
            raise ValueError(
                f"Spectrum: max_modulus={self.max_modulus}: give a positive number, or None for any."
            )


def transition(name: str, spectrum: Spectrum) -> Float[Array, "d d"]:
    """A statement: a matrix with that spectrum, block-diagonal, from parameters.

        A = diag( r_1 R(theta_1), ..., r_k R(theta_k), lambda_1, ... ),   R(theta) = [[cos, -sin], [sin, cos]]

    Args:
        name: of the parameters: `{name}_modulus` [pairs that are not on the circle], `{name}_angle` [pairs], `{name}_real`;
            those of length 0 do not exist.
        spectrum: the set of eigenvalues.

    Returns:
        A, [num_states, num_states].

    Raises:
        ValueError: numbers that fit no real matrix.

    Validity: every real matrix with that spectrum and an eigenvector for each eigenvalue is V A V^{-1}. V is left to what
    surrounds A: the covariance of the innovations, if it may be any, and the first layer of the decoder.
    """
    spectrum.check()
    limit, pairs, on_circle = spectrum.max_modulus, spectrum.num_pairs, spectrum.num_on_circle
    num_real = spectrum.num_states - 2 * pairs
    top = 1.0 if limit is None else limit
    modulus = angle = real = jnp.zeros(0)
    if pairs > on_circle:
        within = constraints.positive if limit is None else constraints.interval(0.0, limit)
        start = jnp.full(pairs - on_circle, 0.9 * top)
        modulus = ppl.param(f"{name}_modulus", start, constraint=within)
    if pairs:
        # From slow to fast: series hold periods of all lengths.
        start = jnp.asarray(np.geomspace(0.1, 1.5, pairs), float)
        angle = ppl.param(f"{name}_angle", start, constraint=constraints.interval(0.0, np.pi))
    if num_real:
        within = constraints.real if limit is None else constraints.interval(-limit, limit)
        real = ppl.param(f"{name}_real", jnp.full(num_real, 0.5 * top), constraint=within)
    radius = jnp.concatenate([jnp.ones(on_circle), modulus])
    blocks = radius[:, None, None] * jnp.stack(
        [
            jnp.stack([jnp.cos(angle), -jnp.sin(angle)], -1),
            jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1),
        ],
        -2,
    )
    return jax.scipy.linalg.block_diag(*blocks, *real[:, None, None])


def eigenvalues(params: ParamMap, spectrum: Spectrum, name: str = "transition") -> np.ndarray:
    """Eigenvalues of fitted parameters, complex, [num_states], the largest modulus first.

    Args:
        params: of a fit.
        spectrum: that was declared.
        name: of the parameters.
    """
    matrix = ppl.Program(lambda: transition(name, spectrum)).bind(params)
    found = np.linalg.eigvals(np.asarray(matrix.simulate(jax.random.key(0)).retval, float))
    return found[np.lexsort((-found.imag, -np.abs(found)))]
