"""Chains summed by a forward recursion: of a product of factors, the total or what each step shows.

For windows w_t = z[t - lag .. t] of one or several chains along one time, and factors f_t of them,

    F(w_t) = prod f_t(w_t) sum over z[t - lag - 1] of F(w_{t - 1}),

linear in the number of steps. Where the factors are the chains' own probabilities, F(w_t) is the probability of the window
(`windows`): what comes later sums to one. In general the sum of F over the last window is the total (`total`).

Windows are opened into digits, one axis for each age, the oldest first. A step sums the oldest digit out and appends its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..evaluation import Chain, Split, close_lanes, open_lanes, read_often, relative, whole_at
from ._semirings import Probabilities, Semiring

Array = jax.Array


def windows(
    probabilities: Any, chains: Sequence[Chain], axis: int, start: Mapping[int, int] | None = None
) -> Any:
    """Probability of every window at each step, in the dimensions of `probabilities`.

    Args:
        probabilities: of each step's states given the window before, all chains' multiplied.
        chains: (dimension, layout) of each chain.
        axis: the time axis, behind all dimensions, where they are not split.
        start: site -> the state before its first step, where that counts.
    """
    if chains[0].layout.lag == 0:
        return probabilities
    if not isinstance(probabilities, Split):
        q = relative(probabilities, axis, chains, probabilities.shape[axis])
        return whole_at(windows(q, chains, axis, start), axis, chains)
    recursion = _Recursion([probabilities], chains, [None], Probabilities(), start or {})
    _, shown = recursion.run(is_shown=True)
    return read_often(close_lanes(shown, recursion.chains))


def total(
    factors: Sequence[Any],
    lags: Sequence[int | None],
    chains: Sequence[Chain],
    axis: int,
    semiring: Semiring,
) -> Array:
    """The sum over all paths of the product of factors [dimensions, axes].

    Args:
        factors: some of them split.
        lags: how many steps back each sees the chains; None: as far as windows show.
        chains: (dimension, layout) of each chain.
        axis: the time axis, behind all dimensions, of factors that are not split.
        semiring: products and sums.
    """
    length = max(x.length if isinstance(x, Split) else x.shape[axis] for x in factors)
    split = [x if isinstance(x, Split) else relative(x, axis, chains, length) for x in factors]
    start = {site: state for x in split for site, state in x.start}
    recursion = _Recursion(split, chains, lags, semiring, start)
    last, _ = recursion.run()
    return semiring.sum(
        last, [d + i for d in recursion.oldest for i in range(recursion.lag + 1)], length
    )


class _Recursion:
    """The recursion over factors that are split.

    What is the same at all steps, such as the transitions of a homogeneous chain, is a constant of the loop. A factor that
    does not see the oldest digit joins after the sum over it, where there are fewer products.
    """

    def __init__(
        self,
        factors: Sequence[Split],
        chains: Sequence[Chain],
        lags: Sequence[int | None],
        semiring: Semiring,
        start: Mapping[int, int],
    ) -> None:
        self.chains, self.semiring = sorted(chains), semiring
        self.lag = chains[0].layout.lag
        # Without time, and windows opened.
        self.oldest = [chain.axis + n * self.lag for n, chain in enumerate(self.chains)]
        self.own = [d + self.lag for d in self.oldest]
        self.steps = [self._opened(x, lag) for x, lag in zip(factors, lags, strict=True)]
        self.length = factors[0].length
        shape = list(np.broadcast_shapes(*(x.shape[1:] for x in jax.tree.leaves(self.steps))))
        self.shown = list(shape)  # of all windows
        for chain, d in zip(self.chains, self.oldest, strict=True):
            self.shown[d : d + self.lag + 1] = [chain.layout.num_states] * (self.lag + 1)
        self.shape = [1 if a in self.own else n for a, n in enumerate(self.shown)]
        # Nothing depends on digits that no step has set yet, or they show the state before the first step.
        hot = np.ones([1] * len(shape))
        for chain, d in zip(self.chains, self.oldest, strict=True):
            for a in range(d, d + self.lag):
                state = start.get(chain.site, 0) if a == d + self.lag - 1 else 0
                one = np.arange(chain.layout.num_states) == state
                hot = hot * one.reshape([-1 if b == a else 1 for b in range(len(shape))])
        dtype = jnp.result_type(*(x.dtype for x in jax.tree.leaves(self.steps)))
        self.before = jnp.broadcast_to(jnp.asarray(semiring.of(hot), dtype), self.shape)

    def run(self, *, is_shown: bool = False) -> tuple[Array, Split]:
        """F before the step after the last; and F of all windows at each step, if shown."""
        before, first = self.before, []
        count = max(len(x.first) for x in self.steps)
        for s in range(count):
            here = [x.steps(s, s + 1)[0] for x in self.steps]
            first.append(self._shown(before, [x[None] for x in here]) if is_shown else None)
            before = self._move(before, here, s)
        steps = [x.steps(count, self.length) for x in self.steps]
        still = [x[0] if len(x) == 1 else None for x in steps]
        moving = [x if s is None else None for x, s in zip(steps, still, strict=True)]

        def step(before: Array, inputs: tuple[Any, Any]) -> tuple[Array, Array | None]:
            here = [m if s is None else s for m, s in zip(inputs[0], still, strict=True)]
            return self._move(before, here, inputs[1]), before if is_shown else None

        number = jnp.arange(count, self.length) if self.semiring.is_numbered else None
        before, past = jax.lax.scan(step, before, (moving, number), self.length - count)
        rest = self._shown(past, steps) if is_shown else None
        return before, Split(first, rest, self.length)

    def _shown(self, before: Array, steps: list[Array]) -> Array:
        """F of all windows."""
        found = self.semiring.times(*steps, before)
        return jnp.broadcast_to(found, (len(found), *self.shown))

    def _move(self, before: Array, steps: list[Array], number: Any) -> Array:
        """F before the next step."""
        early = [x for x in steps if any(x.shape[a] > 1 for a in self.oldest)]
        late = [x for x in steps if all(x.shape[a] == 1 for a in self.oldest)]
        left = self.semiring.sum(self.semiring.times(before, *early), self.oldest, number)
        left = self.semiring.times(jnp.expand_dims(left, self.oldest), *late)
        left = jnp.expand_dims(jnp.squeeze(left, self.oldest), self.own)
        return jnp.broadcast_to(left, self.shape)

    def _opened(self, factor: Split, lag: int | None) -> Split:
        """A factor with windows opened into digits, of size 1 where it sees nothing of them."""
        unseen = range(0 if lag is None else self.lag - lag)
        unseen = {1 + d + i for d in self.oldest for i in unseen}
        seen = lambda x: x[
            tuple(slice(0, 1) if a in unseen else slice(None) for a in range(x.ndim))
        ]
        return jax.tree.map(seen, open_lanes(factor, self.chains))
