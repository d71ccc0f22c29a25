"""An order of particles in which neighbours are close: along a line, or along Hilbert's curve through R^d."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

NUM_BITS = 30  # of the number of a cell along the curve
MOST = 15  # coordinates: with more, a cell has less than 2 bits a side


def nearby_order(places: Float[Array, "particles coordinates"]) -> Int[Array, " particles"]:
    """Indices that sort the particles: by their coordinate if there is one, by `hilbert_index` of their cell if there are more.

    Cells are those of a grid over the unit cube, to which each coordinate is mapped by mean and standard deviation of its finite
    values and a logistic function. An infinite one is at the cube's edge, NaN at the mean (last, if there is one coordinate).

    Raises:
        ValueError: more than 15 coordinates.
    """
    num_coordinates = places.shape[1]
    if num_coordinates > MOST:
        raise ValueError(
            f"smc: order returns {num_coordinates} coordinates, and a curve through so many dimensions tells nothing of "
            f"distances. Return at most {MOST}, e.g. those that the data depend on."
        )
    if num_coordinates == 1:
        return jnp.argsort(places[:, 0])
    is_finite = jnp.isfinite(places)
    finite = jnp.where(is_finite, places, 0.0)
    # Squares of 1e20 would overflow.
    unit = jnp.maximum(jnp.abs(finite).max(0), jnp.finfo(places.dtype).tiny)
    mean = (finite / unit).mean(0, where=is_finite)
    spread = jnp.maximum((finite / unit).std(0, where=is_finite), jnp.finfo(places.dtype).tiny)
    scaled = jnp.nan_to_num((places / unit - mean) / spread, posinf=jnp.inf, neginf=-jnp.inf)
    num_bits = NUM_BITS // num_coordinates
    cells = jnp.floor(jax.nn.sigmoid(scaled) * 2**num_bits).astype(jnp.uint32)
    return jnp.argsort(hilbert_index(jnp.minimum(cells, 2**num_bits - 1), num_bits))


def hilbert_index(cells: Int[Array, "... coordinates"], num_bits: int) -> Int[Array, "*shape"]:
    """Number of each cell along Hilbert's curve through the grid of 2^num_bits cells a side: consecutive cells are neighbours.

    Args:
        cells: coordinates in [0, 2^num_bits), [..., d], uint32; d num_bits at most 32.
        num_bits: see above.

    Reference: Skilling 2004, Programming the Hilbert curve, AIP Conference Proceedings 707.
    """
    x = list(jnp.moveaxis(cells, -1, 0))
    zero = jnp.zeros_like(x[0])
    for bit in reversed(range(1, num_bits)):
        low = jnp.uint32(2**bit - 1)
        for i in range(len(x)):
            is_set = (x[i] >> bit) & 1 == 1
            swapped = jnp.where(is_set, zero, (x[0] ^ x[i]) & low)
            first = x[0] ^ jnp.where(is_set, low, swapped)
            x[i] = first if i == 0 else x[i] ^ swapped
            x[0] = first
    for i in range(1, len(x)):
        x[i] = x[i] ^ x[i - 1]
    turned = zero
    for bit in reversed(range(1, num_bits)):
        turned = turned ^ jnp.where((x[-1] >> bit) & 1 == 1, jnp.uint32(2**bit - 1), zero)
    index = zero
    for bit in reversed(range(num_bits)):
        for coordinate in x:
            index = (index << 1) | (((coordinate ^ turned) >> bit) & 1)
    return index
