"""The Ising model on a torus: a target with exact answers, for samplers and for the tests of everything that learns a law.

Spins s in {-1, +1} on `num_rows` x `num_columns` sites, row by row, periodic in both directions:

    log f(s) = K sum_{edges ij} s_i s_j + b sum_i s_i,        p(s) = f(s) / Z.

Values are bits x in {0, 1} with s = 2 x - 1, so that a distribution over {0, ..., K - 1} can be compared with p directly.

Exact answers come from the transfer matrix between the states of neighbouring rows, at most 2^12 each, in float64 NumPy: log Z,
any marginal p(x_S), independent draws, the mean spin and the entropy. Without a field Kaufman's closed form reaches any size, and
where the coupling is not negative coupling from the past draws exactly from lattices of any size.

The coupling counts each edge once. Code that writes sigma s^T G s with a symmetric adjacency matrix G counts it twice:
K = 2 sigma.

Reference: Kramers and Wannier 1941 (transfer matrix); Kaufman 1949 (finite torus); Propp and Wilson 1996 (coupling from the
past).
"""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..ppl._compat import ArrayLike

_MAX_WIDTH = 12  # 4096 row states: one matrix is 134 MB


@dataclasses.dataclass(frozen=True)
class Ising:
    """An Ising model on a torus.

    Args:
        num_rows: rows, at least 3 so that the two neighbours of a site along a column are distinct.
        num_columns: columns, at least 3.
        coupling: K, per edge; the critical value without a field is log(1 + sqrt 2) / 2 = 0.4407.
        field: b.

    Raises:
        ValueError: fewer than 3 rows or columns.

    Example:
        >>> from lapilli.models.ising import Ising
        >>> round(Ising(3, 3, coupling=0.2, field=0.2).log_partition(), 6)
        7.115373
    """

    num_rows: int
    num_columns: int
    coupling: float
    field: float = 0.0

    def __post_init__(self) -> None:
        if self.num_rows < 3 or self.num_columns < 3:
            raise ValueError(
                f"Ising: {self.num_rows} x {self.num_columns} sites; on a torus with fewer than 3 in a direction both "
                "neighbours of a site are the same one. Use at least 3 x 3."
            )

    @property
    def num_sites(self) -> int:
        """Rows times columns."""
        return self.num_rows * self.num_columns

    def log_density(self, x: Int[Array, "*batch sites"]) -> Float[Array, "*batch"]:
        """Log f(x) in nats, in JAX.

        Args:
            x: bits, 1 for spin up; rows of the lattice one after the other.
        """
        s = 2.0 * jnp.asarray(x) - 1.0
        s = s.reshape(*s.shape[:-1], self.num_rows, self.num_columns)
        edges = s * (jnp.roll(s, 1, -1) + jnp.roll(s, 1, -2))
        return (self.coupling * edges + self.field * s).sum((-2, -1))

    def log_partition(self) -> float:
        """Log Z in nats, by the transfer matrix (at most 12 columns)."""
        _, scale = self._transfer
        return float(np.log(np.trace(self._power(self.num_rows))) + self.num_rows * scale)

    def log_marginal(self, x: ArrayLike, observed: ArrayLike) -> float:
        """Log p(x_S) in nats for one partial assignment.

        Args:
            x: bits, [sites]; those outside S are not read.
            observed: booleans, [sites], true in S.
        """
        return self._log_trace(x, observed) - self.log_partition()

    def sample(self, rng: np.random.Generator, num_samples: int) -> np.ndarray:
        """Independent draws from p, bits of shape [num_samples, sites]."""
        matrix, _ = self._transfer
        closed = np.diag(self._power(self.num_rows))
        first = _draw(rng, np.broadcast_to(closed, (num_samples, len(matrix))))
        rows = [first]
        for left in range(self.num_rows - 1, 0, -1):
            # p(next | last, first) is proportional to V[last, next] V^left[next, first].
            rows.append(_draw(rng, matrix[rows[-1]] * self._power(left).T[first]))
        bits = _row_states(self.num_columns)[np.stack(rows, 1)]
        return bits.reshape(num_samples, self.num_sites)

    def sample_from_past(self, rng: np.random.Generator, num_samples: int) -> np.ndarray:
        """Independent draws from p on a lattice of any size, bits of shape [num_samples, sites].

        Two lattices, all spins up and all down, take the same heat-bath sweeps with the same noise. Each sweep keeps every
        lattice between the two; where they meet at time 0, so has all that started in between, however long before, and
        what they meet in is a draw from p. Where they do not, the noise is kept and earlier sweeps are put before it.

        Below the critical temperature and without a field the time to meet grows exponentially with the size.

        Raises:
            ValueError: the coupling is negative: sweeps do not keep the order then.
        """
        if self.coupling < 0:
            raise ValueError(
                f"Ising.sample_from_past: coupling {self.coupling} is negative, and heat-bath sweeps keep no order between "
                "lattices then. Use `sample` (at most 12 columns); without a field on an even torus flip every other spin."
            )
        draw_noise = lambda count: rng.random((count, self.num_sites, num_samples))
        noise = draw_noise(16)
        while True:
            spins = np.ones((self.num_sites, 2, num_samples))
            spins[:, 0] = -1.0
            for uniforms in noise:
                for site, u in enumerate(uniforms):
                    field = self.coupling * spins[self.neighbours[site]].sum(0) + self.field
                    spins[site] = np.where(u * (1 + np.exp(-2 * field)) < 1, 1.0, -1.0)
            if (spins[:, 0] == spins[:, 1]).all():
                return (spins[:, 0].T > 0).astype(int)
            noise = np.concatenate([draw_noise(len(noise)), noise])

    @functools.cached_property
    def neighbours(self) -> np.ndarray:
        """Sites next to each site, integers [sites, 4]."""
        site = np.arange(self.num_sites).reshape(self.num_rows, self.num_columns)
        around = [np.roll(site, shift, axis) for axis in (0, 1) for shift in (-1, 1)]
        return np.stack(around, -1).reshape(-1, 4)

    def mean_spin(self) -> float:
        """E[s_i], the same for every site."""
        return self._slope(np.zeros_like(self._pairs), self._spins) / self.num_sites

    def mean_log_density(self) -> float:
        """E[log f] in nats."""
        return self._slope(self.coupling * self._pairs, self.field * self._spins)

    def entropy(self) -> float:
        """The entropy of p in nats, log Z - E[log f]."""
        return self.log_partition() - self.mean_log_density()

    @functools.cached_property
    def _spins(self) -> np.ndarray:
        """Half the sum of the spins of two neighbouring rows: every row stands in two pairs."""
        total = (2.0 * _row_states(self.num_columns) - 1).sum(1)
        return 0.5 * (total[:, None] + total)

    @functools.cached_property
    def _pairs(self) -> np.ndarray:
        """Edges between two neighbouring rows and half of those within each."""
        s = 2.0 * _row_states(self.num_columns) - 1
        within = (s * np.roll(s, 1, 1)).sum(1)
        return 0.5 * (within[:, None] + within) + s @ s.T

    @functools.cached_property
    def _transfer(self) -> tuple[np.ndarray, float]:
        """The matrix V between neighbouring rows, divided by its largest entry, and the log of that entry."""
        if self.num_columns > _MAX_WIDTH:
            raise ValueError(
                f"Ising: {self.num_columns} columns have 2^{self.num_columns} row states; the transfer matrix is for at most "
                f"{_MAX_WIDTH}. Turn the lattice, or without a field use log_partition_kaufman."
            )
        log_matrix = self.coupling * self._pairs + self.field * self._spins
        return np.exp(log_matrix - log_matrix.max()), float(log_matrix.max())

    @functools.cached_property
    def _powers(self) -> dict[int, np.ndarray]:
        return {}

    def _power(self, n: int) -> np.ndarray:
        """V^n, n - 1 rows summed out; kept."""
        if n not in self._powers:
            self._powers[n] = np.linalg.matrix_power(self._transfer[0], n)
        return self._powers[n]

    def _slope(self, pairs: np.ndarray, spins: np.ndarray) -> float:
        """D log Z of a change of log V by pairs + spins: rows tr(V^(rows - 1) dV) / Z."""
        matrix, _ = self._transfer
        change = matrix * (pairs + spins)
        rest = self._power(self.num_rows - 1)
        return float(self.num_rows * (rest * change.T).sum() / (rest * matrix.T).sum())

    def _log_trace(self, x: ArrayLike, observed: ArrayLike) -> float:
        """Log of the sum of f over all states that agree with x where observed."""
        shape = (self.num_rows, self.num_columns)
        bits, mask = np.asarray(x).reshape(shape), np.asarray(observed, bool).reshape(shape)
        (seen_rows,) = np.nonzero(mask.any(1))
        if not len(seen_rows):
            return self.log_partition()
        states = _row_states(self.num_columns)
        allowed = {i: np.flatnonzero(((states == bits[i]) | ~mask[i]).all(1)) for i in seen_rows}
        # The trace is cyclic: start where fewest states are left, so that every product is thin.
        start = int(np.argmin([len(allowed[i]) for i in seen_rows]))
        cycle = np.roll(seen_rows, -start)
        product, log_scale = np.eye(len(allowed[cycle[0]])), self.num_rows * self._transfer[1]
        for here, there in zip(cycle, np.roll(cycle, -1), strict=True):
            steps = (there - here - 1) % self.num_rows + 1
            product = product @ self._power(steps)[np.ix_(allowed[here], allowed[there])]
            log_scale += np.log(product.max())
            product /= product.max()
        return float(np.log(np.trace(product)) + log_scale)


def log_partition_kaufman(num_rows: int, num_columns: int, coupling: float) -> float:
    """Log Z in nats of the torus without a field, of any size (Kaufman 1949).

        Z = (2 sinh 2K)^(nm/2) / 2 [prod_odd 2 cosh(m g_l / 2) + prod_odd 2 sinh(m g_l / 2)
                                    + prod_even 2 cosh(m g_l / 2) + prod_even 2 sinh(m g_l / 2)]

    with cosh g_l = cosh 2K coth 2K - cos(pi l / n) for l = 0, ..., 2n - 1 and g_0 = 2K + log tanh K, negative above the critical
    temperature.

    Args:
        num_rows: m.
        num_columns: n.
        coupling: K > 0.

    Raises:
        ValueError: K is not positive.
    """
    if coupling <= 0:
        raise ValueError(
            f"log_partition_kaufman: coupling must be positive, got {coupling}. An even torus has the same Z at -K."
        )
    n, m = num_columns, num_rows
    angles = np.pi * np.arange(1, 2 * n) / n
    gamma = np.arccosh(np.cosh(2 * coupling) / np.tanh(2 * coupling) - np.cos(angles))
    half = m * np.append(2 * coupling + np.log(np.tanh(coupling)), gamma) / 2
    log_cosh = np.logaddexp(half, -half)
    with np.errstate(divide="ignore"):  # g_0 vanishes at the critical coupling
        log_sinh = np.abs(half) + np.log1p(-np.exp(-2 * np.abs(half)))
    terms = [log_cosh[1::2].sum(), log_sinh[1::2].sum(), log_cosh[::2].sum(), log_sinh[::2].sum()]
    signs = [1.0, 1.0, 1.0, np.sign(half[0])]
    top = max(terms)
    total = sum(sign * np.exp(term - top) for sign, term in zip(signs, terms, strict=True))
    return float(0.5 * n * m * np.log(2 * np.sinh(2 * coupling)) - np.log(2) + top + np.log(total))


def _row_states(num_columns: int) -> np.ndarray:
    """All rows of bits, [2^columns, columns]."""
    return (np.arange(2**num_columns)[:, None] >> np.arange(num_columns)[::-1]) & 1


def _draw(rng: np.random.Generator, weights: np.ndarray) -> np.ndarray:
    """One index per row, in proportion to weights [rows, states]."""
    cumulative = np.cumsum(weights, 1)
    threshold = rng.uniform(size=(len(weights), 1)) * cumulative[:, -1:]
    return (cumulative <= threshold).sum(1)
