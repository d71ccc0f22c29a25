"""Laws of events whose numbers are of any kind, one number given those before: the default of learned likelihoods.

Number i of an event has, given a context c and the numbers before it, one of three laws. With z the number on its scale
(`Scaling`), mu and s its place and width, S a monotone spline of a line, and Phi the distribution function of a standard Normal:

- real: u = S((z - mu) / s) is standard Normal, so that p(x) = phi(u) S' / s dz/dx.
- whole: P(x = k) = Phi(u(k + 1/2)) - Phi(u(k - 1/2)), the mass of that law which rounding gives to k; below the least value
  there is nothing, and its mass goes to it. The sum over all k is 1, term by term.
- few: a categorical law.

mu, the logarithm of s, the spline and the logits are linear in c (mu in the numbers before, too) at first, as least squares and
logistic regression have them, and a masked network, zero at first, adds to them (Papamakarios, Pavlakou and Murray 2017,
arXiv:1705.07057; Germain et al. 2015, arXiv:1502.03509; of rounding, Salimans et al. 2017, arXiv:1701.05517).
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from ...ppl._precision import full_precision
from ...ppl._types import Key
from ._columns import Kind, Scaling
from ._flows import with_zeros_last
from ._splines import Knots

_RIDGE = 1e-3  # of the rows' number, in units of the coordinates
_LEAST_SD = 1e-3  # of what least squares leaves
_CLIP = 5.0  # standard deviations: the linear part follows so far
_LARGEST_LOG_SCALE = 8.0
_NARROW = (
    1e-2  # standard deviations: so narrow a cell has the density of its middle, to 1e-5 of itself
)


class MaskedNet(eqx.Module):
    """Numbers for d columns, made of a context and of the columns before each.

    Half of the hidden units see the context alone and feed all columns; the others see the columns up to their own degree, too,
    and feed those after it.

    Args:
        size: d.
        context_size: c.
        groups: columns that get equally many numbers, and how many.
        key: PRNG key.
        width: of each half.
        depth: hidden layers.
    """

    layers: list[eqx.nn.Linear]
    heads: list[eqx.nn.Linear]
    size: int = eqx.field(static=True)
    context_size: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    groups: tuple[tuple[tuple[int, ...], int], ...] = eqx.field(static=True)

    def __init__(
        self, size: int, context_size: int, groups: tuple[tuple[tuple[int, ...], int], ...], *,
        key: Key, width: int, depth: int,
    ) -> None:  # fmt: skip
        self.size, self.context_size, self.width, self.groups = size, context_size, width, groups
        num = len(self._degrees)
        sizes = [context_size + size, *[num] * (depth - 1)]
        keys = jax.random.split(key, depth)
        self.layers = [eqx.nn.Linear(i, num, key=k) for i, k in zip(sizes, keys, strict=True)]
        heads = [eqx.nn.Linear(num, len(columns) * m, key=key) for columns, m in groups]
        self.heads = jax.tree.map(jnp.zeros_like, heads)

    @property
    def _degrees(self) -> np.ndarray:
        """Of the hidden units: how many columns they see."""
        later = np.linspace(1, self.size - 1, self.width).round() if self.size > 1 else np.zeros(0)
        return np.concatenate([np.zeros(self.width), later]).astype(int)

    def __call__(self, context: Float[Array, " c"], columns: Float[Array, " d"]) -> list[Array]:
        """Of each group [number of columns, number of numbers]."""
        seen = np.concatenate([np.zeros(self.context_size), np.arange(1, self.size + 1)])
        x = jnp.concatenate([context, columns])
        for layer in self.layers:
            x = jax.nn.silu(_masked(layer, self._degrees[:, None] >= seen, x))
            seen = self._degrees
        found = []
        for head, (own, num) in zip(self.heads, self.groups, strict=True):
            mask = np.repeat(own, num)[:, None] >= seen
            found.append(_masked(head, mask, x).reshape(len(own), num))
        return found


@full_precision
def _masked(layer: eqx.nn.Linear, mask: np.ndarray, x: Array) -> Array:
    assert layer.bias is not None
    return jnp.where(mask, layer.weight, 0.0) @ x + layer.bias


class AutoregressiveNet(eqx.Module):
    """Makes the laws of an event's numbers: linear parts, which `fitted` begins with, and a masked network.

    Args:
        kinds: of the d numbers.
        context_size: c.
        most: values of the "few".
        key: PRNG key of the network.
        width: as of `MaskedNet`.
        depth: likewise.
        num_bins: of a spline.

    Attributes:
        alone: what the context alone adds to places and widths.
        net: what the numbers before add, and splines and logits.
        weight: of places and logits, [f, c] of moved columns and [g, most, c] of those with few values.
        bias: their constants.
        mixing: of places, the columns before, [f, d]; rows are not read where `mixes` is false.
        log_scale: of widths given the context, [f].
        narrower: logarithm of what the numbers before leave of them, [f].
        kinds: as given.
        mixes: whether a place follows the columns before from the start, [f].
    """

    alone: eqx.nn.MLP
    net: MaskedNet
    weight: tuple[Array, Array]
    bias: tuple[Array, Array]
    mixing: Array
    log_scale: Array
    narrower: Array
    kinds: tuple[Kind, ...] = eqx.field(static=True)
    mixes: tuple[bool, ...] = eqx.field(static=True)

    def __init__(
        self, kinds: tuple[Kind, ...], context_size: int, most: int, *, key: Key, width: int = 32,
        depth: int = 2, num_bins: int = 8,
    ) -> None:  # fmt: skip
        self.kinds, size = kinds, len(kinds)
        flows, few = (tuple(map(int, x)) for x in (self.moved, self.few))
        groups = ((flows, 3 * num_bins + 1), (few, max(most, 1)))
        self.net = MaskedNet(size, context_size, groups, key=key, width=width, depth=depth)
        sizes = max(context_size, 1), 2 * len(flows), width, depth
        self.alone = with_zeros_last(
            eqx.nn.MLP(*sizes, jax.nn.silu, key=jax.random.fold_in(key, 1))
        )
        self.weight = (
            jnp.zeros((len(flows), context_size)),
            jnp.zeros((len(few), max(most, 1), context_size)),
        )
        self.bias = jnp.zeros(len(flows)), jnp.zeros((len(few), max(most, 1)))
        self.mixing, self.log_scale = jnp.zeros((len(flows), size)), jnp.zeros(len(flows))
        self.narrower = jnp.zeros(len(flows))
        self.mixes = (True,) * len(flows)

    @property
    def moved(self) -> np.ndarray:
        """The columns whose law is one of a line."""
        return np.flatnonzero(np.array([kind != "few" for kind in self.kinds], bool))

    @property
    def few(self) -> np.ndarray:
        """The others."""
        return np.flatnonzero(np.array([kind == "few" for kind in self.kinds], bool))

    def fitted(
        self, context: np.ndarray, scaled: np.ndarray, labels: np.ndarray
    ) -> AutoregressiveNet:
        """Least squares and logistic regression of rows [N, c], [N, d] on their scales, and [N, g] labels of few values.

        A number is regressed on those before it, too, where Schwarz's criterion has it that these tell something.
        """
        seen, left = np.clip(np.asarray(context, float), -_CLIP, _CLIP), np.array(scaled, float)
        weight, mixing = np.zeros(self.weight[0].shape), np.zeros(self.mixing.shape)
        bias, log_scale, narrower, mixes = *np.zeros((3, len(weight))), []
        for k, i in enumerate(self.moved):
            slopes, rest = least_squares(seen, left[:, i])
            weight[k], bias[k], log_scale[k] = slopes[:-1], slopes[-1], _log_sd(rest)
            left[:, i] = rest / np.exp(log_scale[k])
        for k, i in enumerate(self.moved):
            slopes, rest = least_squares(np.clip(left[:, :i], -_CLIP, _CLIP), left[:, i])
            mixes.append(bool(-2 * _log_sd(rest) * len(seen) > i * np.log(len(seen)) > 0))
            if mixes[-1]:
                mixing[k, :i], narrower[k] = slopes[:-1], _log_sd(rest)
        logits = np.zeros((len(self.few), self.bias[1].shape[1], seen.shape[1] + 1))
        for k in range(len(logits)):
            logits[k] = _logistic(seen, labels[:, k], logits.shape[1])
        new = (
            weight, logits[..., :-1], bias, logits[..., -1], mixing, log_scale, narrower,
        )  # fmt: skip
        old = lambda net: (*net.weight, *net.bias, net.mixing, net.log_scale, net.narrower)
        begun = eqx.tree_at(old, self, tuple(jnp.asarray(x, self.mixing.dtype) for x in new))
        object.__setattr__(begun, "mixes", tuple(mixes))
        return begun

    @full_precision
    def __call__(
        self, context: Float[Array, " c"], scaled: Float[Array, " d"]
    ) -> tuple[Array, Array, Array, Array]:
        """Place, logarithm of the width and spline of the moved columns, [f], [f] and [f, 3 K - 1], logits [g, most]."""
        clipped, seen = jnp.clip(context, -_CLIP, _CLIP), jnp.arcsinh(context)
        shift, widening = self.alone(seen if len(seen) else jnp.ones(1)).reshape(2, -1)
        width = self.log_scale + _bounded(widening)
        # In units of the width: where that is small, places are known better.
        loc = (self.weight[0] * clipped).sum(-1) + self.bias[0] + jnp.exp(width) * shift
        left = scaled.at[self.moved].set((scaled[self.moved] - loc) * jnp.exp(-width))
        moved, logits = self.net(seen, jnp.arcsinh(left))
        mask = (np.arange(len(self.kinds)) < self.moved[:, None]) & np.array(self.mixes, bool)[
            :, None
        ]
        before = jnp.clip(left, -_CLIP, _CLIP)
        narrower = self.narrower + _bounded(moved[:, 1])
        shift = (jnp.where(mask, self.mixing, 0.0) * before).sum(-1) + jnp.exp(narrower) * moved[
            :, 0
        ]
        logits = logits + (self.weight[1] * clipped).sum(-1) + self.bias[1]
        return loc + jnp.exp(width) * shift, width + narrower, moved[:, 2:], logits


def _bounded(log_scale: Array) -> Array:
    return _LARGEST_LOG_SCALE * jnp.tanh(log_scale / _LARGEST_LOG_SCALE)


class AutoregressiveLaw(dist.Distribution):
    """The law of an event given a context, see above.

    Args:
        net: makes the laws of its numbers.
        columns: their scales.
        context: [*batch, c].
        event_shape: of d numbers.
    """

    pytree_data_fields = ("net", "columns", "context")
    arg_constraints = {}

    def __init__(
        self, net: AutoregressiveNet, columns: Scaling, context: Array, event_shape: tuple[int, ...]
    ) -> None:
        self.net, self.columns, self.context = net, columns, context
        super().__init__(jnp.shape(context)[:-1], event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All real numbers, or whole ones if each number is one; others have the density 0."""
        discrete = "real" not in self.net.kinds
        one = constraints.integer_greater_than(-(2**24)) if discrete else constraints.real
        return constraints.independent(one, len(self.event_shape)) if self.event_shape else one

    def log_prob(self, value: Array) -> Array:
        """Of whole numbers their mass, of real ones their density, [*batch]."""
        value = jnp.asarray(value)
        batch = value.shape[: value.ndim - len(self.event_shape)]
        x = value.reshape(*batch, -1).astype(jnp.result_type(float))
        *moved, logits = self._numbers(self.columns.scaled(x))
        total = jnp.zeros(())
        if len(own := self.net.moved):
            is_whole = np.array([self.net.kinds[i] == "whole" for i in own])
            total = _moved(x[..., own], self._only(own), is_whole, *moved).sum(-1)
        if len(own := self.net.few):
            label = x[..., own] - self.columns.low[own]
            values = np.arange(logits.shape[-1])
            is_there = (label[..., None] == values).any(-1)
            logs = jnp.where(label[..., None] == values, jax.nn.log_softmax(logits), 0.0).sum(-1)
            total = total + jnp.where(is_there, logs, -jnp.inf).sum(-1)
        return total

    def sample(self, key: Key, sample_shape: tuple[int, ...] = ()) -> Array:
        """One number after another."""
        size = len(self.net.kinds)
        own, few = self.net.moved, self.net.few
        is_whole = np.array([kind == "whole" for kind in self.net.kinds], bool)

        def step(i: Array, x: Array) -> Array:
            noise_key, label_key = jax.random.split(jax.random.fold_in(key, i))
            loc, log_scale, knots, logits = self._numbers(self.columns.scaled(x))
            made = x
            if len(own):
                u = jax.random.normal(noise_key, (*x.shape[:-1], len(own)))
                z = loc + jnp.exp(log_scale) * Knots.of(knots).inverse(u)
                y = self._only(own).value(z)
                y = jnp.where(is_whole[own], jnp.maximum(jnp.round(y), self.columns.low[own]), y)
                made = made.at[..., own].set(y)
            if len(few):
                label = jax.random.categorical(label_key, logits)
                made = made.at[..., few].set(label + self.columns.low[few])
            return jnp.where(jnp.arange(size) == i, made, x)

        start = jnp.zeros((*sample_shape, *self.batch_shape, size))
        found = jax.lax.fori_loop(0, size, step, start)
        whole = "real" not in self.net.kinds
        found = found.reshape(*start.shape[:-1], *self.event_shape)
        return found.astype(int) if whole else found

    def _numbers(self, scaled: Array) -> tuple[Array, ...]:
        return jnp.vectorize(self.net, signature="(c),(d)->(f),(f),(f,k),(g,m)")(
            self.context, scaled
        )

    def _only(self, own: np.ndarray) -> Scaling:
        return Scaling(*(x[own] for x in self.columns))


def _moved(
    x: Array, columns: Scaling, is_whole: np.ndarray, loc: Array, log_scale: Array, knots: Array
) -> Array:
    """Log-densities of real numbers and log-masses of whole ones, [*batch, f]."""
    spline = Knots.of(knots)
    inner = (columns.scaled(x) - loc) * jnp.exp(-log_scale)
    logs = -0.5 * spline.value(inner) ** 2 - 0.5 * np.log(2 * np.pi)
    logs = logs + spline.log_derivative(inner) - log_scale + columns.log_slope(x)
    logs = jnp.where(columns.is_log & ~(x + columns.offset > 0), -jnp.inf, logs)
    if not is_whole.any():
        return logs
    only = lambda numbers: jnp.broadcast_to(numbers, logs.shape)[..., is_whole]
    cells = Scaling(*(part[is_whole] for part in columns))
    knots = jnp.broadcast_to(knots, (*logs.shape, knots.shape[-1]))[..., is_whole, :]
    at = lambda x: Knots.of(knots).value((cells.scaled(x) - only(loc)) * jnp.exp(-only(log_scale)))
    mass = _mass(only(x), cells.low, at, only(logs))
    return logs.at[..., is_whole].set(mass)


def _mass(x: Array, least: np.ndarray, u: Callable[[Array], Array], log_density: Array) -> Array:
    """Log Phi(u(x + 1/2)) - Phi(u(x - 1/2)), from the side on which both tails are small."""
    low, high = u(x - 0.5), u(x + 0.5)
    flipped = low + high > 0
    a, b = jnp.where(flipped, -high, low), jnp.where(flipped, -low, high)
    wide = b - a > _NARROW
    log_a = jax.scipy.special.log_ndtr(jnp.where(wide, a, -1.0))
    log_b = jax.scipy.special.log_ndtr(jnp.where(wide, b, 1.0))
    difference = log_b + jnp.log(-jnp.expm1(jnp.minimum(log_a - log_b, -1e-7)))
    mass = jnp.where(wide, difference, log_density)
    mass = jnp.where(x <= least, jax.scipy.special.log_ndtr(high), mass)
    return jnp.where((x < least) | (x != jnp.round(x)), -jnp.inf, mass)


def least_squares(features: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slopes [c + 1, *values], the constant last, of features [N, c] and values [N, *values], and what they leave."""
    design = np.column_stack([features, np.ones(len(features))])
    penalty = np.diag([*np.full(features.shape[1], _RIDGE * len(features)), 0.0])
    slopes = np.linalg.solve(design.T @ design + penalty, design.T @ values)
    return slopes, values - design @ slopes


def _log_sd(left: np.ndarray) -> float:
    return 0.5 * float(np.log((left**2).mean() + _LEAST_SD**2))


def _logistic(features: np.ndarray, labels: np.ndarray, num: int) -> np.ndarray:
    """Logits' slopes, the constant last, [num, c + 1], with a standard Normal as the slopes' prior."""
    from scipy.optimize import minimize  # on use: a tenth of a second
    from scipy.special import log_softmax

    design = np.column_stack([features, np.ones(len(features))])
    hot = np.eye(num)[labels.astype(int)]
    # A value that was not met has had half a row.
    prior = np.array([*np.ones(features.shape[1]), 1e-2])

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        slopes = flat.reshape(num, -1)
        logs = log_softmax(design @ slopes.T, 1)
        value = -(hot * logs).sum() + 0.5 * (prior * slopes**2).sum()
        slope = (np.exp(logs) - hot).T @ design + prior * slopes
        return value / len(labels), slope.ravel() / len(labels)

    start = np.zeros((num, design.shape[1]))
    start[:, -1] = np.log((hot.sum(0) + 0.5) / (len(labels) + 0.5 * num))
    return minimize(loss, start.ravel(), jac=True, method="L-BFGS-B").x.reshape(num, -1)
