"""Forward recursions over chains: the sum of a product of factors over all paths, or the probability of every window.

For windows w_t = z[t - lag .. t] of one or several chains along one time, and factors f_t of them,

    F(w_t) = f_t(w_t) M_t(z[t - lag .. t - 1]),    M_t = sum over z[t - lag - 1] of F(w_{t - 1}),

linear in the number of steps; M_t is the *message* to step t. Where f_t(w_t) is the probability of z[t] given
z[t - lag .. t - 1], F(w_t) is the probability of the window (`windows`), since the factors of later steps sum to one.
In general the sum of F over the last window is the total (`total`).

Windows are opened into digits, one axis for each age, the oldest first. A step sums the oldest digit out and appends
its own.

In logs, the largest value of a message is subtracted from it before every step. What was subtracted is added up in
twice the precision (`_semirings.Scale`): this sum grows with the number of steps, and as a part of log F it would
round what differs between windows.
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
    """The probability of every window at each step, in the axes of `probabilities`.

    Args:
        probabilities: of the states of all chains at each step given the window before, the product over the chains;
            with time at `axis` if they are no `Split`.
        chains: all of the same memory.
        axis: position of time, behind all enumeration dimensions.
        start: site -> the state before step 0, where that is known.
    """
    if chains[0].layout.lag == 0:
        return probabilities
    if not isinstance(probabilities, Split):
        q = relative(probabilities, axis, chains, probabilities.shape[axis])
        return whole_at(windows(q, chains, axis, start), axis, chains)
    recursion = _Recursion([probabilities], [None], chains, Probabilities(), start or {})
    _, _, shown = recursion.run(is_shown=True)
    # The barrier keeps it in memory, in the recursion's shape: XLA would compute it again for each of its readers.
    return close_windows(jax.lax.optimization_barrier(shown), recursion.chains)


def total(
    factors: Sequence[PyTree],
    lags: Sequence[int | None],
    chains: Sequence[Chain],
    axis: int,
    ring: Semiring,
) -> Array:
    """The sum over all paths of the product of factors: [dimensions without those of `chains`, other axes].

    Args:
        factors: with time at `axis` where they are not split.
        lags: for each factor, how many steps back it depends on the chains; None: the whole window.
        chains: all of the same memory.
        axis: position of time, behind all enumeration dimensions.
        ring: what a product and a sum are; in logs, factors and result are logarithms.
    """
    length = max(x.length if isinstance(x, Split) else x.shape[axis] for x in factors)
    split = [x if isinstance(x, Split) else relative(x, axis, chains, length) for x in factors]
    start = {site: state for x in split for site, state in x.start}
    recursion = _Recursion(split, lags, chains, ring, start)
    # The message to the step after the last has the digits of ages lag, ..., 1 left to be summed out.
    last, scale, _ = recursion.run()
    found = ring.sum(last, recursion.digits, length)
    return found if scale is None else scale.times(found)


class _Recursion:
    """The recursion over split factors.

    A factor that does not depend on the oldest digit is multiplied after the sum over it, with a smaller array.

    Attributes:
        oldest: axis of each chain's digit of age lag, in an array of one step.
        own: axis of each chain's digit of age 0.
        digits: axes of all digits.
        factors: the factors, opened into digits.
        shown: shape of F at one step.
        shape: shape of a message.
        before: the message to step 0.
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
        # With windows opened, and without time, a chain's digits stand at axis + n lag, ..., axis + n lag + lag, since
        # each of the n chains in front of it has lag axes more than it had.
        self.oldest = [chain.axis + n * lag for n, chain in enumerate(self.chains)]
        self.own = [a + lag for a in self.oldest]
        self.digits = [a + i for a in self.oldest for i in range(lag + 1)]
        self.factors = [self._opened(x, seen) for x, seen in zip(factors, lags, strict=True)]
        arrays = jax.tree.leaves(self.factors)
        self.shown = list(np.broadcast_shapes(*(x.shape[1:] for x in arrays)))
        # The message to step 0 is 1 in one window of the past and 0 elsewhere, so that sums over the past count it
        # once. In that window the state of age 1 is the known one, if there is one. No factor depends on other states
        # before step 0: they are 0 in it.
        hot = np.ones([1] * len(self.shown))
        for chain, oldest in zip(self.chains, self.oldest, strict=True):
            num_states = chain.layout.num_states
            self.shown[oldest : oldest + lag + 1] = [num_states] * (lag + 1)
            for age in range(lag, 0, -1):
                state = start.get(chain.site, 0) if age == 1 else 0
                behind = hot.ndim - 1 - (oldest + lag - age)
                hot = hot * (np.arange(num_states) == state).reshape(-1, *[1] * behind)
        # A message to step t does not depend on z[t]: size 1 at `own`.
        self.shape = [1 if a in self.own else n for a, n in enumerate(self.shown)]
        dtype = jnp.result_type(*(x.dtype for x in arrays))
        self.before = jnp.broadcast_to(jnp.asarray(ring.of(hot), dtype), self.shape)

    def run(self, *, is_shown: bool = False) -> tuple[Array, Scale | None, Split]:
        """The message to the step after the last, the scale taken from it, and F at each step.

        Without `is_shown`, None stands for each part of F. With it nothing is scaled, and the scale is None.
        """
        # Steps that some factor stores apart (`Split.first`) are unrolled; the later ones are one scan.
        before, first = self.before, []
        scale = None if is_shown else self.ring.scale(before, self.digits)
        for s in range(max(len(x.first) for x in self.factors)):
            here = [x.steps(s, s + 1) for x in self.factors]
            first.append(self._shown(before, here) if is_shown else None)
            before, scale = self._scaled(before, scale)
            before = self._move(before, [x[0] for x in here], s)
        steps = [x.steps(len(first), self.length) for x in self.factors]
        # Factors that are the same at all steps, such as the transitions of a homogeneous chain, are constants of the
        # scan; the others are sliced by it.
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
        """The message divided by its largest value, and the scale times that value; unchanged without a scale."""
        return (before, None) if scale is None else scale.taken(before, self.digits)

    def _shown(self, before: Array, steps: list[Array]) -> Array:
        """F at some steps, [steps, *self.shown], from the messages to them."""
        found = self.ring.times(*steps, before)
        return jnp.broadcast_to(found, (len(found), *self.shown))

    def _move(self, before: Array, steps: list[Array], number: object) -> Array:
        """The message to the next step, from that to this one (`before`) and the factors at this one (`steps`)."""
        sees_oldest = [any(x.shape[a] > 1 for a in self.oldest) for x in steps]
        early = [x for x, sees in zip(steps, sees_oldest, strict=True) if sees]
        late = [x for x, sees in zip(steps, sees_oldest, strict=True) if not sees]
        # The sum over the oldest digit of the message times the factors that depend on it, then times the others.
        # `ring.sum` drops the digit's axis.
        left = self.ring.sum(self.ring.times(before, *early), self.oldest, number)
        left = self.ring.times(jnp.expand_dims(left, self.oldest), *late)
        # Every digit is one step older now: the oldest one's axis goes, and one for the next step's digit comes last.
        left = jnp.expand_dims(jnp.squeeze(left, self.oldest), self.own)
        return jnp.broadcast_to(left, self.shape)

    def _opened(self, factor: Split, lag: int | None) -> Split:
        """A factor with windows opened into digits, those on which it does not depend of size 1."""
        # It does not depend on ages above `lag`, the first self.lag - lag digits of each chain: take their state 0.
        ages = range(0 if lag is None else self.lag - lag)
        unseen = {1 + a + i for a in self.oldest for i in ages}
        seen = lambda x: x[tuple(slice(1 if a in unseen else None) for a in range(x.ndim))]
        return jax.tree.map(seen, open_windows(factor, self.chains))
