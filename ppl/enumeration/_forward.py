"""Chains summed by a forward recursion: the total of a product of factors, or what each step shows.

For windows w_t = z[t - lag .. t] of one or several chains along one time, and factors f_t of them,

    F(w_t) = f_t(w_t) sum over z[t - lag - 1] of F(w_{t - 1}),

linear in the number of steps. Where the factors are the chains' own probabilities, F(w_t) is the probability of the window
(`windows`), for what comes later sums to one. In general the sum over the last window is the total (`total`).

Windows are opened into digits, one axis for each age, the oldest first. A step sums the oldest digit out and appends its own.

On a logarithmic scale F is divided by its largest value in front of every step, and the logarithms of these are added in twice
the precision (`_semirings.Scale`): else their sum, which grows with the number of steps, would round F.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..evaluation import Chain, Split, close_windows, open_windows, relative, whole_at
from ._semirings import Probabilities, Scale, Semiring

Array = jax.Array


def windows(
    probabilities: Array | Split,
    chains: Sequence[Chain],
    axis: int,
    start: Mapping[int, int] | None = None,
) -> PyTree:
    """Probability of every window at each step, from that of each step's states given the window before.

    Args:
        probabilities: all chains' multiplied, with time at `axis` where they are not split.
        chains: with the same memory.
        axis: behind all enumeration dimensions.
        start: site -> the state before its first step, where that counts.
    """
    if chains[0].layout.lag == 0:
        return probabilities
    if not isinstance(probabilities, Split):
        q = relative(probabilities, axis, chains, probabilities.shape[axis])
        return whole_at(windows(q, chains, axis, start), axis, chains)
    # One factor, q(z_t | window before): F(w_t) is then the probability of the window w_t.
    recursion = _Recursion([probabilities], [None], chains, Probabilities(), start or {})
    _, _, shown = recursion.run(is_shown=True)
    # Kept, in the shape of the recursion: XLA would compute it again for each of its readers.
    return close_windows(jax.lax.optimization_barrier(shown), recursion.chains)


def total(
    factors: Sequence[PyTree],
    lags: Sequence[int | None],
    chains: Sequence[Chain],
    axis: int,
    ring: Semiring,
) -> Array:
    """The sum over all paths of the product of factors, with time at `axis` where they are not split.

    `lags`: how many steps back each factor sees the chains; None: as far as windows show.
    """
    length = max(x.length if isinstance(x, Split) else x.shape[axis] for x in factors)
    split = [x if isinstance(x, Split) else relative(x, axis, chains, length) for x in factors]
    start = {site: state for x in split for site, state in x.start}
    recursion = _Recursion(split, lags, chains, ring, start)
    # F after the last step has the digits of ages lag, ..., 1 left: summed out, it is the total over all paths.
    last, scale, _ = recursion.run()
    found = ring.sum(last, recursion.digits, length)
    return found if scale is None else scale.times(found)


class _Recursion:
    """The recursion over split factors.

    What is the same at all steps, such as the transitions of a homogeneous chain, is a constant of the loop. A factor that
    does not see the oldest digit joins after the sum over it, where there are fewer products.
    """

    def __init__(
        self,
        factors: Sequence[Split],
        lags: Sequence[int | None],
        chains: Sequence[Chain],
        ring: Semiring,
        start: Mapping[int, int],
    ) -> None:
        self.chains, self.ring, self.length = sorted(chains), ring, factors[0].length
        self.lag = lag = chains[0].layout.lag
        # Axes once windows are opened, and without time: a chain's digits stand at axis + n lag, ..., axis + n lag + lag, since
        # each of the n chains in front of it has brought lag axes more.
        self.oldest = [chain.axis + n * lag for n, chain in enumerate(self.chains)]
        self.own = [a + lag for a in self.oldest]
        self.digits = [a + i for a in self.oldest for i in range(lag + 1)]
        self.factors = [self._opened(x, seen) for x, seen in zip(factors, lags, strict=True)]
        arrays = jax.tree.leaves(self.factors)
        self.shown = list(np.broadcast_shapes(*(x.shape[1:] for x in arrays)))
        # F before the first step is 1 in one window of the past and 0 elsewhere, so that sums over the past count it once.
        # Nothing depends on digits that no step has set yet (state 0 stands for them), or age 1 shows the known state before the
        # first step.
        hot = np.ones([1] * len(self.shown))
        for chain, oldest in zip(self.chains, self.oldest, strict=True):
            num_states = chain.layout.num_states
            self.shown[oldest : oldest + lag + 1] = [num_states] * (lag + 1)
            for age in range(lag, 0, -1):
                state = start.get(chain.site, 0) if age == 1 else 0
                behind = hot.ndim - 1 - (oldest + lag - age)
                hot = hot * (np.arange(num_states) == state).reshape(-1, *[1] * behind)
        # Between steps F has no digit of the step to come: size 1 at `own`.
        self.shape = [1 if a in self.own else n for a, n in enumerate(self.shown)]
        dtype = jnp.result_type(*(x.dtype for x in arrays))
        self.before = jnp.broadcast_to(jnp.asarray(ring.of(hot), dtype), self.shape)

    def run(self, *, is_shown: bool = False) -> tuple[Array, Scale | None, Split]:
        """The sum over what lies before the step after the last, relative to a scale; F of all windows at each step, if shown.

        If shown, F is relative to nothing.
        """
        # The first steps, which stand apart in some factor, are unrolled; the others are one scan.
        before, first = self.before, []
        scale = None if is_shown else self.ring.scale(before, self.digits)
        for s in range(max(len(x.first) for x in self.factors)):
            here = [x.steps(s, s + 1) for x in self.factors]
            first.append(self._shown(before, here) if is_shown else None)
            before, scale = self._scaled(before, scale)
            before = self._move(before, [x[0] for x in here], s)
        steps = [x.steps(len(first), self.length) for x in self.factors]
        # Factors that are one array for all steps are constants of the loop; the others are sliced by it.
        still = [x[0] if len(x) == 1 else None for x in steps]
        moving = [x if s is None else None for x, s in zip(steps, still, strict=True)]

        def step(carry: tuple[PyTree, ...], inputs: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            shown = carry[0] if is_shown else None
            before, scale = self._scaled(*carry)
            here = [m if s is None else s for m, s in zip(inputs[0], still, strict=True)]
            return (self._move(before, here, inputs[1]), scale), shown

        number = jnp.arange(len(first), self.length) if self.ring.is_numbered else None
        (before, scale), past = jax.lax.scan(
            step, (before, scale), (moving, number), self.length - len(first)
        )
        rest = self._shown(past, steps) if is_shown else None
        return before, scale, Split(first, rest, self.length)

    def _scaled(self, before: Array, scale: Scale | None) -> tuple[Array, Scale | None]:
        """F relative to its largest value, which goes to the scale."""
        return (before, None) if scale is None else scale.taken(before, self.digits)

    def _shown(self, before: Array, steps: list[Array]) -> Array:
        """F of all windows at some steps."""
        found = self.ring.times(*steps, before)
        return jnp.broadcast_to(found, (len(found), *self.shown))

    def _move(self, before: Array, steps: list[Array], number: object) -> Array:
        """The sum over what lies before the next step."""
        sees_oldest = [any(x.shape[a] > 1 for a in self.oldest) for x in steps]
        early = [x for x, sees in zip(steps, sees_oldest, strict=True) if sees]
        late = [x for x, sees in zip(steps, sees_oldest, strict=True) if not sees]
        # sum over the oldest digit of F times the factors that see it, then times the others. `ring.sum` drops the digit's axis.
        left = self.ring.sum(self.ring.times(before, *early), self.oldest, number)
        left = self.ring.times(jnp.expand_dims(left, self.oldest), *late)
        # Every digit is one step older now: the oldest axis goes, and an axis for the next step's own digit is put behind.
        left = jnp.expand_dims(jnp.squeeze(left, self.oldest), self.own)
        return jnp.broadcast_to(left, self.shape)

    def _opened(self, factor: Split, lag: int | None) -> Split:
        """A factor with windows opened into digits, of size 1 where it sees nothing of them."""
        # It sees ages 0, ..., lag: older digits, the first self.lag - lag of them, are read at their first state.
        ages = range(0 if lag is None else self.lag - lag)
        unseen = {1 + a + i for a in self.oldest for i in ages}
        seen = lambda x: x[tuple(slice(1 if a in unseen else None) for a in range(x.ndim))]
        return jax.tree.map(seen, open_windows(factor, self.chains))
