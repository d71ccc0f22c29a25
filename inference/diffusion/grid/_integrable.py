"""Whether a corrected diffusion has a target at all times, and begins at it: what is refused, or makes the weights NaN.

What can be seen beforehand raises. Values that are traced by jax.jit are looked at by the run, where a target that is none makes
the weights of the first particles NaN, and with them the evidence.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float, PyTree

from ....ppl._compat import is_concrete
from ....ppl.language import name_of
from .. import _points as points
from .._composition import Composition, Reward
from .._rewards import try_at_start
from ._steps import Coefficients

NUM_PROBES = 32  # points at which a reward is looked at, and directions of the tails
SMALL = 0.01  # share of the reward at the data, in nats, that counts as nothing at the noise
FAR = 1e3  # where tails are looked at, and at twice this, in units of the noise at the end, at least 1
NUM_TIMES = 5  # at which tails are looked at


class Unseen(NamedTuple):
    """What the run has to look at: whether the reward vanishes at the first time, whether the tails fall."""

    reward: bool = False
    tails: bool = False


def check_target(
    composition: Composition,
    known: Coefficients,
    law: dict[str, dist.Distribution] | dist.Distribution,
    has_start: bool,
) -> Unseen:
    """Refuse targets that are none, or are not begun at; returns what could not be seen.

    Args:
        composition: models, exponents and reward.
        known: the grid.
        law: of the first points.
        has_start: whether that is the user's.

    Raises:
        ValueError: a reward that does not vanish at the first time, or a target that grows far out.
    """
    if (reward := composition.reward) is not None:
        first = known.times[0]
        at_first = lambda x: reward(x, jnp.asarray(first, float))
        try_at_start("fkc", at_first, name_of(reward), lambda: _draws(law))
        _refuse_early_constraints(reward, known, law)
    with jax.ensure_compile_time_eval():
        is_late = False if has_start else _is_late(composition, known, _draws(law))
        rises = _rises(composition, known)
    if is_concrete(is_late) and bool(is_late):
        raise ValueError(
            f"fkc: the reward does not vanish at the first time {known.times[0]:g}, where particles are drawn from "
            "Normal(0, variance / W) as if there were none. Let it rise from 0, e.g. (1 - t / noising.end) * r(x), and begin at "
            "the end of the process; or give the law of the first points as start=."
        )
    if is_concrete(rises) and bool(rises):
        raise ValueError(
            f"fkc: the target with exponents {_shown(known.exponents[-1])} grows far out, at a distance of {FAR:g}, and is not "
            "integrable: models with a negative exponent have narrower tails than the others, or the reward grows faster than "
            "the models fall. Use smaller negative exponents, wider models for them, or a reward that is bounded."
        )
    return Unseen(not is_concrete(is_late), not is_concrete(rises))


def check_exponents(composition: Composition, known: Coefficients, has_start: bool) -> None:
    """Refuse exponents whose sum is not positive: far out, where models are alike, the target would not fall."""
    totals = known.exponents.sum(1)
    worst = int(np.argmin(totals))
    if totals[worst] > 0 or (has_start and composition.reward is not None):
        return
    where = "the first time" if worst == 0 else f"time {known.times[worst]:g}"
    raise ValueError(
        f"fkc: the exponents add up to {totals[worst]:g} at {where}, where the target is then not integrable. Give exponents of "
        "positive sum at all times; only with a reward that makes the target integrable, and the law of the first points as "
        "start=, may it be 0 or less."
    )


def penalty(unseen: Unseen, composition: Composition, known: Coefficients, x: Array) -> Array:
    """0, or NaN where what could not be seen beforehand is wrong; x is a first point."""
    is_wrong = jnp.asarray(False)
    if unseen.reward:
        is_wrong |= _is_late(composition, known, jax.tree.map(lambda x: x[None], x))
    if unseen.tails:
        is_wrong |= _rises(composition, known)
    return jnp.where(is_wrong, jnp.nan, 0.0)


def _draws(law: dict[str, dist.Distribution] | dist.Distribution) -> ArrayLike:
    keys = jax.random.split(jax.random.key(0), NUM_PROBES)
    return jax.vmap(lambda key: points.draw(law, key))(keys)


def _refuse_early_constraints(reward: Reward, known: Coefficients, law: PyTree) -> None:
    """Refuse a reward that is -inf halfway, where that is seen."""
    middle = len(known.times) // 2
    if middle == len(known.times) - 1:
        return
    width = np.sqrt(np.exp(2 * known.log_alpha) + known.variance)  # of noised data of variance 1
    shrunk = float(width[middle] / width[0])
    with jax.ensure_compile_time_eval():
        t = jnp.asarray(known.times[middle], float)
        x = jax.tree.map(lambda x: shrunk * x, _draws(law))
        found = jax.vmap(lambda x: reward(x, t))(x)
    if is_concrete(found) and (num := int((np.asarray(found) == -np.inf).sum())):
        raise ValueError(
            f"fkc: reward '{name_of(reward)}' is -inf at {num} of {len(found)} points at time {known.times[middle]:g}, where "
            "there is noise still: particles that break the constraint there die, and some of them would keep it at the end. "
            "Bring it in at the last time alone, jnp.where(t > times[-1], 0.0, r(x)), or pass inference.tilt(program, r), which "
            "does."
        )


def _is_late(composition: Composition, known: Coefficients, x: ArrayLike) -> ArrayLike:
    """Whether the reward at the first time is more than a small share of that at the last, at some of the points."""
    reward = composition.reward
    if reward is None:
        return False
    at = lambda t: jnp.abs(jax.vmap(lambda x: reward(x, jnp.asarray(t, float)))(x)).max()
    return ~(at(known.times[0]) <= SMALL * (1 + at(known.times[-1])))


def _rises(composition: Composition, known: Coefficients) -> ArrayLike:
    """Whether the log-density of the target grows in some direction far out, at one of a few times; where it is known and may."""
    models, reward = composition.models, composition.reward
    may = reward is not None or bool((known.exponents < 0).any())
    if not may or any(m.log_density is None for m in models):
        return False
    unit = points.normal_law(models[0].shape, 1.0)
    far = FAR * max(1.0, float(known.variance[0]) ** 0.5)

    def log_target(x: Array, t: Array, w: Float[Array, " models"]) -> Array:
        parts = [m.log_density_at(x, t) for m in models if m.log_density is not None]
        return (w * jnp.stack(parts)).sum() + (0.0 if reward is None else reward(x, t))

    def one(direction: PyTree, t: Array, w: Array) -> Array:
        norm = jnp.sqrt(points.total(jnp.square, direction))
        at = lambda size: log_target(jax.tree.map(lambda x: size * x / norm, direction), t, w)
        near, beyond = at(far), at(2 * far)
        return (beyond > near) | ((beyond == near) & jnp.isfinite(near))

    rows = np.unique(np.linspace(0, len(known.times) - 1, NUM_TIMES).round().astype(int))
    over_times = jax.vmap(one, (None, 0, 0))
    times, exponents = (jnp.asarray(x[rows], float) for x in (known.times, known.exponents))
    return jax.vmap(over_times, (0, None, None))(_draws(unit), times, exponents).any()


def _shown(exponents: np.ndarray) -> str:
    return "[" + ", ".join(f"{w:g}" for w in exponents) + "]"
