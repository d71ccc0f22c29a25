"""How far a law is from a tilt: one report for whatever made the law.

With w = p(x) exp(r(x) / b) / q(x), x ~ q, and Z the total of p exp(r / b):

    KL(q || p*) = log Z - E_q[log w],    variance of log w under q = 0 exactly where q = p* on its support.

Where the outcomes can be listed all of it is summed. Else E_q[log w] is unbiased, and log Z is bounded in the mean: from below by
the log of a mean weight, of draws of p or of q (Jensen), from above by E_p*[log w] where draws of p* are given.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import typed_key
from ...ppl._shared_jit import shared_jit
from ...ppl._types import Key, ModelFn
from ...ppl.densities import StochasticProgram
from ...ppl.language import matched
from ..diagnostics._weights import importance_diagnostics
from ..fitting import Fit
from ._best_of import BestOf
from ._outcomes import Outcomes, outcomes_of
from ._partial import partial_log_weight, shapes_of
from ._tilt import TiltedProgram, tilt as tilted
from ._tilt_report import Measured, TiltReport


@checked_call
def report(
    tilt: TiltedProgram, law: Fit | ModelFn | BestOf | Mapping[str, Array], key: Key, *args: PyTree,
    num_draws: int = 2000, draws: Mapping[str, Array] | None = None,
) -> TiltReport:  # fmt: skip
    """How far a law is from a tilt: divergence, mean reward, entropy, what of it is exact, and what it took.

    A policy that has found an error of the reward has a large mean reward, and a large divergence.

    Args:
        tilt: the target.
        law: q: a program over the tilt's latent sites with its parameters bound, `ppl.normalize` and the like among them; a
            `Fit`, of which the guide is taken; a `best_of`, by its law where outcomes can be listed, else by `num_draws` draws;
            or draws, latent site -> values [S, ...] of equal weight (particles, a search), of the sites that the reward reads.
        key: PRNG key of either kind.
        args: the arguments of tilt and law.
        num_draws: draws of the law and of the model, where outcomes are too many to be listed (2^16).
        draws: equally weighted draws of the tilt itself from elsewhere, latent site -> values [S, ...]: for `kl_at_most`.

    Returns:
        A `TiltReport`.

    Raises:
        ValueError: too few draws, or ones that the sites cannot have; `draws` of other sites or shapes, or that are none of the
            tilt; a log-weight is NaN; the law draws other sites than the tilt has; no draw of the model has a reward above -inf.
        TypeError: a `Fit` without a guide.

    Validity: exact where every latent site has finitely many values, known when the program is traced, and all together at most
    2^16; of a law that is given by draws, but for the errors of its own numbers. Else `reward`, `entropy` and the mean log-weight
    are unbiased, and the mean weight behind `log_z` is unbiased for Z, so
    that the means of `log_z` and of `kl` are at most the truth, by about half the squared error of `log_z`; `kl_at_most` bounds
    the divergence from the other side, if the given draws are ones of the tilt. Where `k_hat_base` is above 0.7 neither model
    nor law reach the tilt, and `log_z`, `kl` and `reward_tilt` cannot be believed: the divergence is larger then. For a law
    whose density is estimated (`ppl.normalize`) the log-density of a draw is too high in the mean, and so are `kl` and minus
    `entropy`.
    """
    started, key = time.perf_counter(), typed_key(key)
    check_counts("report", 2, num_draws=num_draws)
    if isinstance(law, Fit):
        if law.guide is None:
            raise TypeError(
                "report: the fit has no guide, so it has no law to compare. Give the program that was trained, with its "
                "parameters bound: program.bind(fit.params)."
            )
        law = law.guide
    if draws is not None:
        draws = {name: jnp.asarray(x) for name, x in draws.items()}
        _check_draws(tilt, draws, args, "of the tilt", is_whole=True)
    listed, made = outcomes_of(tilt, args), None
    q = _best(law, listed, key, args, num_draws) if isinstance(law, BestOf) else law
    if isinstance(q, Mapping):
        q = {name: jnp.asarray(x) for name, x in q.items()}
        _check_draws(tilt, q, args, "of the law")
    elif not isinstance(q, np.ndarray):
        q = ppl.as_program(q)
    is_whole = not isinstance(q, Mapping) or listed is None or set(q) == set(listed.choices)
    if listed is not None and is_whole and not isinstance(q, StochasticProgram):
        made = _exact(tilt, q, listed, args)
    if made is None:
        assert not isinstance(q, np.ndarray)  # probabilities of outcomes, which sum to 1
        made = _sampled(tilt, q, key, args, num_draws, draws)
    return dataclasses.replace(made, seconds=time.perf_counter() - started)


def _best(
    best: BestOf, listed: Outcomes | None, key: Array, args: tuple, num_draws: int
) -> np.ndarray | Mapping[str, Array]:
    """The law of the best of N: probabilities of the outcomes, or draws where there are too many."""
    if listed is None:
        keys = jax.random.split(jax.random.fold_in(key, 3), num_draws)
        return jax.lax.map(lambda key: best.simulate(key, *args).choices, keys)
    rewards = _rewards(tilted(best.base, best.reward), listed.choices, args)
    return best.law_of(rewards, np.exp(listed.log_density(best.base, args)))


def _exact(
    tilt: TiltedProgram, law: ppl.Program | Mapping[str, Array] | np.ndarray, listed: Outcomes, args: tuple
) -> TiltReport | None:  # fmt: skip
    """By sums over all outcomes, of which a law may be the probabilities; None where the law is none on them."""
    joint = listed.log_density(tilt, args)
    log_z = float(np.logaddexp.reduce(joint))
    _check_weights(joint, "the model")
    reward = _rewards(tilt, listed.choices, args)
    numbers = None
    if isinstance(law, Mapping):
        numbers = _numbers(listed, law)
        q = np.bincount(numbers, minlength=listed.number) / len(numbers)
    else:
        q = law if isinstance(law, np.ndarray) else np.exp(listed.log_density(law, args))
    with np.errstate(divide="ignore"):
        log_q = np.log(q)
    if abs(q.sum() - 1) > 1e-3:  # its sites are others, or it is a posterior
        return None
    some = q > 0
    log_w = joint[some] - log_q[some]
    kl = log_z - _mean(q[some], log_w)
    at = np.isfinite(log_w).all()
    residual = _mean(q[some], (log_w - _mean(q[some], log_w)) ** 2) if at else math.inf
    mean, entropy = Measured(_mean(q, reward)), Measured(-_mean(q[some], log_q[some]))
    divergence = Measured(kl)
    if numbers is not None:  # the draws' own spread; of functions of their counts, to first order
        mean = _measured(reward[numbers])
        entropy = Measured(entropy.value, _measured(log_q[numbers]).error)
        divergence = Measured(kl, _measured((joint - log_q)[numbers]).error)
    return TiltReport(
        kl=divergence, kl_is="exact" if numbers is None else "plug-in", kl_at_most=None, log_z=Measured(log_z),
        reward=mean, reward_base=Measured(_mean(_prior(tilt, listed, args), reward)),
        reward_tilt=Measured(_mean(np.exp(joint - log_z), reward)), entropy=entropy,
        residual=residual, k_hat=None, k_hat_base=None, narrow_tails=None, evaluations=listed.number, seconds=0.0,
    )  # fmt: skip


def _numbers(listed: Outcomes, draws: Mapping[str, Array]) -> np.ndarray:
    """Which outcome each draw is.

    Raises:
        ValueError: one is none.
    """
    numbers = listed.numbers(draws)
    if (numbers < 0).any():
        first = int((numbers < 0).argmax())
        raise ValueError(
            f"report: {int((numbers < 0).sum())} of {len(numbers)} draws are none of the {listed.number} outcomes of the model, "
            f"draw {first} among them: { {n: np.asarray(draws[n])[first].tolist() for n in listed.choices} }. They would be "
            "counted as others. Give values that the sites can have."
        )
    return numbers


def _prior(tilt: TiltedProgram, listed: Outcomes, args: tuple) -> np.ndarray:
    log_p = listed.log_density(tilt.base, args)
    return np.exp(log_p - np.logaddexp.reduce(log_p))


def _rewards(
    tilt: TiltedProgram, choices: Mapping[str, Array | np.ndarray], args: tuple
) -> np.ndarray:
    """Of values of the latent sites that the reward reads, [outcomes]; -inf where a constraint is broken."""
    log_weight = partial_log_weight("report", tilt, list(choices), args)
    one = lambda x: log_weight(x) * tilt.temperature
    run = lambda x: jax.lax.map(one, x, batch_size=4096)
    return np.asarray(shared_jit(run)(dict(choices)), np.float64)


def _sampled(
    tilt: TiltedProgram, law: ppl.Program | Mapping[str, Array], key: Array, args: tuple, number: int,
    given: Mapping[str, Array] | None,
) -> TiltReport:  # fmt: skip
    """By draws of the model, of the law, and of the tilt if there are any."""
    known = None if isinstance(law, Mapping | StochasticProgram) else law  # with an exact density
    is_law = known is not None
    one, other = jax.random.split(key)
    of_model = _at_draws(tilt, tilt.base, known, one, args, number)
    joint = of_model.joint - of_model.prior
    # Of observations, if the model has any: what its draws are weighted by without the reward.
    others = of_model.others
    plain = np.exp(others - np.logaddexp.reduce(others))
    before = Measured(_mean(plain, of_model.reward), _spread(plain, of_model.reward))
    if isinstance(law, Mapping):
        found = _rewards(tilt, law, args)
        _check_weights(joint, "the model")
        log_z, shares, k_hat = _total([joint])
        tilted = Measured(_mean(shares, of_model.reward), _spread(shares, of_model.reward))
        return TiltReport(
            kl=None, kl_is="unknown", kl_at_most=None, log_z=log_z, reward=_measured(found), reward_base=before,
            reward_tilt=tilted, entropy=None, residual=None, k_hat=None, k_hat_base=k_hat,
            narrow_tails=None, evaluations=number + len(found), seconds=0.0,
        )  # fmt: skip
    of_law = _at_draws(tilt, law, law, other, args, number)
    log_w = of_law.joint - of_law.own
    if np.isnan(log_w).any():
        raise ValueError(
            f"report: {int(np.isnan(log_w).sum())} of {number} log-weights of the law are NaN. Find the site whose log-prob "
            "breaks: ppl.score(tilt, law.simulate(key)).log_probs."
        )
    inside = bool(np.isfinite(log_w).all())
    bound = _measured(log_w) if inside else Measured(-math.inf)
    if is_law:
        # Draws of both, weighed by the mixture: unbiased for Z, and no weight is large where either of them draws.
        halves = [x.joint - np.logaddexp(x.prior, x.own) + math.log(2) for x in (of_model, of_law)]
        _check_weights(np.concatenate(halves), "model and law")
        log_z, shares, k_hat = _total(halves)
        rewards = np.concatenate([of_model.reward, of_law.reward])
        parts = [np.exp(x - log_z.value) / 2 for x in halves]
        error = math.sqrt((parts[0].var() + (parts[1] - log_w).var()) / number) if inside else 0.0
    else:
        _check_weights(joint, "the model")
        log_z, shares, k_hat = _total([joint])
        rewards, error = of_model.reward, math.hypot(log_z.error, bound.error)
    above, evaluations = None, 2 * number
    if given is not None and is_law:
        upper = _measured(_given(tilt, law, given, args))
        above = Measured(upper.value - bound.value, math.hypot(upper.error, bound.error))
        evaluations += len(next(iter(given.values())))
    has_weight = np.isfinite(log_w).any()
    return TiltReport(
        kl=Measured(log_z.value - bound.value, error), kl_is="estimate", kl_at_most=above, log_z=log_z,
        reward=_measured(of_law.reward), reward_base=before,
        reward_tilt=Measured(_mean(shares, rewards), _spread(shares, rewards)), entropy=_measured(-of_law.own),
        residual=float(log_w.var(ddof=1)) if inside else math.inf,
        k_hat=importance_diagnostics(log_w).k_hat if has_weight else None, k_hat_base=k_hat,
        narrow_tails=_narrow(tilt, law, jax.random.fold_in(key, 2), args) if is_law else None,
        evaluations=evaluations, seconds=0.0,
    )  # fmt: skip


class _AtDraws(NamedTuple):
    """Log-densities at draws, each [S]: of the tilt, of the model's latent sites, of its data, of the law; and the reward."""

    joint: np.ndarray
    prior: np.ndarray
    others: np.ndarray
    own: np.ndarray
    reward: np.ndarray


def _at_draws(
    tilt: TiltedProgram,
    source: ppl.Program,
    law: ppl.Program | None,
    key: Array,
    args: tuple,
    number: int,
) -> _AtDraws:
    """At draws of `source`: the model or the law."""

    def one(key: Array) -> tuple[Array, ...]:
        drawn = source.simulate(key, *args)
        scored = tilt.trace(drawn.shared_choices, *args)
        if source is not tilt.base:
            scored = matched(scored, drawn, ("inside",))
        parts = {n: x.sum() for n, x in scored.log_probs.items() if n != tilt.site}
        prior = sum((x for n, x in parts.items() if n in scored.choices), jnp.zeros(()))
        others = sum((x for n, x in parts.items() if n not in scored.choices), jnp.zeros(()))
        own = drawn.log_density
        if source is tilt.base:
            own = jnp.zeros(()) if law is None else law.log_density(drawn.choices, *args)
        reward = scored.log_probs[tilt.site] * tilt.temperature
        return scored.log_density, prior, others, own, reward

    found = shared_jit(jax.vmap(one))(jax.random.split(key, number))
    return _AtDraws(*(np.asarray(x, np.float64) for x in found))


def _total(log_weights: Sequence[np.ndarray]) -> tuple[Measured, np.ndarray, float]:
    """Log of the mean of weights from several laws in equal numbers, with its error; normalised weights; k-hat."""
    every = np.concatenate(log_weights)
    log_z = float(np.logaddexp.reduce(every) - math.log(len(every)))
    ratios = [np.exp(x - log_z) for x in log_weights]
    error = math.sqrt(sum(x.var() / len(x) for x in ratios)) / len(ratios)
    shares = np.exp(every - np.logaddexp.reduce(every))
    return Measured(log_z, error), shares, importance_diagnostics(every).k_hat


def _narrow(
    tilt: TiltedProgram, law: ppl.Program, key: Array, args: tuple, number: int = 64
) -> float | None:
    """Share of rays from the law's centre through its draws on which p^2 / q, whose integral is the weights' square, grows."""
    keys = jax.random.split(key, number)
    x = jax.vmap(lambda key: law.simulate(key, *args).shared_choices)(keys)
    if not all(jnp.issubdtype(v.dtype, jnp.floating) for v in x.values()):
        return None
    centre = jax.tree.map(lambda v: v.mean(0), x)
    gaps = jax.tree.map(lambda v, c: v - c, x, centre)
    # A draw near the centre shows a direction and no distance: its ray would end in the law's bulk.
    wide = jax.tree.map(lambda g: jnp.square(g) / jnp.maximum(jnp.square(g).mean(0), 1e-30), gaps)
    distance = jnp.sqrt(sum(w.reshape(number, -1).sum(1) for w in jax.tree.leaves(wide)))
    stretch = jnp.maximum(jnp.median(distance) / jnp.maximum(distance, 1e-15), 1.0)
    gaps = jax.tree.map(lambda g: g * stretch.reshape(-1, *[1] * (g.ndim - 1)), gaps)

    def along(gap: PyTree) -> Array:
        def at(factor: Array) -> Array:
            far = jax.tree.map(lambda c, g: c + factor * g, centre, gap)
            return 2 * tilt.log_density(far, *args) - law.log_density(far, *args)

        return jax.vmap(at)(jnp.array([8.0, 16.0, 32.0]))

    near, further, furthest = np.asarray(shared_jit(jax.vmap(along))(gaps), np.float64).T
    with np.errstate(invalid="ignore"):
        grows = (further > near) & (furthest > further) & np.isfinite(near)
    return float(grows.mean())


def _given(
    tilt: TiltedProgram, law: ppl.Program, at: Mapping[str, Array], args: tuple
) -> np.ndarray:
    """Log-weights at draws of the tilt; +inf where the law has no density.

    Raises:
        ValueError: the tilt has none either, or a NaN.
    """
    one = lambda x: (tilt.log_density(x, *args), law.log_density(x, *args))
    joint, own = (np.asarray(x, np.float64) for x in shared_jit(jax.vmap(one))(at))
    is_none = ~(joint > -np.inf) | np.isnan(own)
    if is_none.any():
        raise ValueError(
            f"report: {int(is_none.sum())} of {len(joint)} draws in argument 'draws' are none of the tilt, the first one draw "
            f"{int(is_none.argmax())}: its log-density is {joint[is_none][0]:.4g} there, the law's {own[is_none][0]:.4g}. Give "
            "equally weighted draws of the tilt itself."
        )
    return joint - own


def _check_weights(log_weights: np.ndarray, whose: str) -> None:
    if np.isnan(log_weights).any() or not (log_weights > -np.inf).any():
        what = "NaN" if np.isnan(log_weights).any() else "-inf at all of them"
        raise ValueError(
            f"report: the log-weights of {len(log_weights)} draws of {whose} are {what}: there is no tilt to compare with. Mend "
            "the reward, or take more draws (num_draws=)."
        )


def _check_draws(
    tilt: TiltedProgram, draws: Mapping[str, Array], args: tuple, whose: str, *, is_whole: bool = False
) -> None:  # fmt: skip
    """Refuse what are no draws of latent sites: of all of them, if `is_whole`; `whose` says of what."""
    shapes = shapes_of(tilt, args)
    latent = sorted(shapes)
    unknown, missing = set(draws) - set(latent), set(latent) - set(draws) if is_whole else ()
    if unknown or missing:
        rest = "" if is_whole else "; sites that the reward does not read may be left out"
        raise ValueError(
            f"report: draws {whose} have the sites {sorted(draws)}, and the tilt's latent sites are {latent}. Give values of "
            f"these, [S, ...] each{rest}."
        )
    found, wanted = {n: x.shape for n, x in draws.items()}, {n: shapes[n].shape for n in draws}
    sizes = {shape[0] if shape else 0 for shape in found.values()}
    if len(sizes) > 1 or any(found[n][1:] != wanted[n] for n in draws):
        raise ValueError(
            f"report: draws {whose} have the shapes {found}, and one value of each site {wanted}. Give as many of each site, "
            "stacked along one leading axis."
        )
    if max(sizes, default=0) < 2:
        raise ValueError(
            f"report: {max(sizes, default=0)} draws {whose} are given, and a mean with its error needs at least 2. Give "
            "more draws."
        )
    for name, x in draws.items():
        is_integer = not jnp.issubdtype(shapes[name].dtype, jnp.floating)
        is_value = x == jnp.round(x) if is_integer else jnp.isfinite(x)
        if not is_value.all():
            kind = "integers, and would be read as others" if is_integer else "finite"
            raise ValueError(
                f"report: draws {whose}, site '{name}' (shape {x.shape}): {int((~is_value).sum())} of {x.size} numbers are none "
                f"of its values, for they are not {kind}. Give values that the site can have."
            )


def _mean(weights: np.ndarray, values: np.ndarray) -> float:
    """A weighted mean; what has no weight does not count."""
    some = weights > 0
    return float((weights[some] * values[some]).sum())


def _spread(weights: np.ndarray, values: np.ndarray) -> float:
    """Standard error of a weighted mean."""
    some = weights > 0
    w, x = weights[some], values[some]
    if not np.isfinite(x).all():
        return math.inf
    return float(np.sqrt((w**2 * (x - (w * x).sum()) ** 2).sum()))


def _measured(x: np.ndarray) -> Measured:
    if not np.isfinite(x).all():
        return Measured(float(x.mean()), math.inf)
    return Measured(float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x))))
