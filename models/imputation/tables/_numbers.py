"""Numbers of a table given its categories: draws of the parameters, and of the missing cells, in square-root form.

Parameters. For X = D B + N L' with N of standard normal numbers, and [D X] = Q R, R upper triangular with blocks R_D, R_DX, R_X,

    R_DX = R_D B + Z L',   R_X' = L A,

where Z is standard normal and A A' is Wishart: A lower triangular, A_kk^2 ~ chi^2(n - q - k), k = 0, 1, ..., normal below. Solved
for B and L, with Z and A drawn anew, this is the posterior under the right Haar measure of the group of (B, L), B flat. Each
column's regression on D and the columns before it has n - q - k degrees of freedom as in least squares, so that intervals are
exact for the complete table; under Jeffreys' prior the last ones would have n - q, and residual variances would be too small by
(n - q - d) / (n - q). The order matters to these degrees alone: columns with more holes come later (`Columns`). Reference: Eaton
and Sudderth 1999; Berger and Sun 2008, Annals of Statistics 36, 963.

Cells. Of a row, with o its observed cells and x* = mean + L z an unconditional draw, x* + K (x_o - x*_o) has the law of x given
x_o. Observed cells are taken in one by one: with v the row of L that belongs to cell j, x moves by L v / |v|^2 times what cell j
is off, and L (1 - v v' / |v|^2) is left of L (Gram and Schmidt's orthogonalisation of the observed rows). No covariance is
formed: a column that is the sum of two others to 1 in 1,000 leaves four digits in single precision. K depends on which cells are
observed alone, so that it is found once for each pattern.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float

from ....ppl._precision import full_precision
from ....ppl._types import Key

# Of a column's sum of squares: columns that others determine keep a thousandth of their spread, so that roots are not singular.
RIDGE = 1e-6
PATTERNS_AT_ONCE = 64


@full_precision
def root(design: Float[Array, "rows q"], x: Float[Array, "rows d"]) -> Float[Array, "q+d q+d"]:
    """R of [D X], upper triangular with positive diagonal."""
    joined = jnp.concatenate([design, x], 1)
    size = jnp.sqrt((joined**2).sum(0))
    ridge = jnp.diag(jnp.sqrt(RIDGE) * jnp.where(size > 0, size, 1.0))
    found = jnp.linalg.qr(jnp.concatenate([joined, ridge]), mode="r")
    return found * jnp.where(jnp.diagonal(found) < 0, -1.0, 1.0)[:, None]


@full_precision
def draw_parameters(key: Key, R: Float[Array, "q+d q+d"], rows: int, q: int) -> tuple[Array, Array]:
    """(B [q, d], L [d, d]) from their posterior given the root of a complete table of `rows` rows."""
    d = len(R) - q
    chi_key, below_key, mean_key = jax.random.split(key, 3)
    # chi^2(m) as m squares: a gamma sampler would take longer to compile than all the rest.
    counts = jnp.arange(rows)[:, None] < rows - q - jnp.arange(d)
    chi = jnp.sqrt((jax.random.normal(chi_key, (rows, d)) ** 2 * counts).sum(0))
    wishart = jnp.tril(jax.random.normal(below_key, (d, d)), -1) + jnp.diag(chi)
    tril = jnp.tril(solve_triangular(wishart.T, R[q:, q:], lower=False).T)
    noise = jax.random.normal(mean_key, (q, d)) @ tril.T
    return solve_triangular(R[:q, :q], R[:q, q:] - noise, lower=False), tril


@full_precision
def gains(tril: Float[Array, "d d"], patterns: Bool[Array, "p d"]) -> Float[Array, "p d d"]:
    """K of each pattern of observed cells."""
    d, tiny = len(tril), jnp.finfo(tril.dtype).tiny

    def gain(seen: Array) -> Array:
        def take(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            left, found = carry
            step = seen[j] * (left @ left[j]) / jnp.maximum((left[j] ** 2).sum(), tiny)
            off = (jnp.arange(d) == j) - found[
                j
            ]  # of cell j, as a function of what all cells were off
            return left - step[:, None] * left[j], found + step[:, None] * off

        return jax.lax.fori_loop(0, d, take, (tril, jnp.zeros_like(tril)))[1]

    # Part by part, so that what a part needs stays near the processor.
    return jax.lax.map(gain, patterns, batch_size=min(len(patterns), PATTERNS_AT_ONCE))


@full_precision
def given_seen(
    draw: Float[Array, "rows d"],
    x: Float[Array, "rows d"],
    seen: Bool[Array, "rows d"],
    gain: Float[Array, "rows d d"],
) -> Float[Array, "rows d"]:
    """The table whose missing cells are made of unconditional draws (or of means: their conditional means)."""
    found = draw + jnp.einsum("ni,nji->nj", jnp.where(seen, x - draw, 0.0), gain)
    return jnp.where(seen, x, found)
