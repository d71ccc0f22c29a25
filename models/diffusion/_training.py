"""Denoising score matching: what a network may predict, its regression, and the diffusion model that a trained one is."""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, PyTree

from ... import ppl
from ...inference import Objective, objective
from ...inference.diffusion import Diffusion, Noising
from ...inference.diffusion._diffusion import Time, check_noise, is_one_process
from ...ppl._compat import is_concrete
from ...ppl._types import Key
from .._trained import trained
from ._contexts import one_context, row_contexts

Parametrisation = Literal["score", "noise", "data", "velocity", "flow"]
TARGETS = ("noise", "data", "velocity")


def score_matching(
    network: object,
    noising: Noising,
    *,
    predicts: Parametrisation = "velocity",
    num_times: int = 1000,
    drop_context: float = 0.1,
    noise: dist.Distribution | None = None,
) -> Objective:
    """Denoising score matching as maximum likelihood of a regression, in nats.

        L = E_{t, eps} sum_n log Normal(target_n; network(x_n, level(t_n), context_n), 1),   x_n = alpha x_0 + std eps,

    with the target (eps, x_0 or the velocity) scaled to unit variance for data of unit variance. Times are drawn along the
    process's own grid, stratified over the rows of a batch.

    Args:
        network: an equinox module as in `MLP` and `ImageNet`, with `num_classes`, or that takes a context of arrays.
        noising: the noising process.
        predicts: "noise", "data" or "velocity"; the last is that of EDM's preconditioning, up to sign.
        num_times: length of the grid of times, between whose points times are drawn evenly.
        drop_context: probability that a row's context is hidden, for classifier-free guidance and for the law without it.
        noise: law of eps for one point, e.g. `PoissonNoise`; Normal(0, I) by default.

    Returns:
        An objective of the arguments `(x, context)`, x [rows, *shape] of about unit variance and the context integer labels
        [rows], a tree of arrays [rows, ...] (for a network with an encoder or context channels), or None, with the plate "rows":
        `fit(..., subsample={"rows": 128})`. The parameter is "network".

    Raises:
        ValueError: another parametrisation; a context that the network does not take, or without the rows of x; noise of
            another shape than a point; `drop_context` outside of [0, 1].

    Validity: unbiased for L. At its optimum the prediction is E[target | x_t], so that `from_network` has the true score.

    Reference: Vincent 2011; Ho, Jain and Abbeel 2020, arXiv:2006.11239; Karras et al. 2022, arXiv:2206.00364; Ho and Salimans
    2022, arXiv:2207.12598 (hidden contexts); Kingma et al. 2021, arXiv:2107.00630 (stratified times).
    """
    if predicts not in TARGETS:
        raise ValueError(f"score_matching: predicts must be one of {TARGETS}, got {predicts!r}.")
    grid = noising.times(num_times)[::-1]

    @ppl.model
    def regression(x: Array, context: PyTree = None) -> None:
        net, rows = ppl.module("network", network), x.shape[0]
        time_key, noise_key, label_key = jax.random.split(ppl.rng_key("noise"), 3)
        strata = row_strata(time_key, rows)
        t = jnp.interp(strata * num_times, jnp.arange(num_times + 1), grid)
        eps = jax.random.normal(noise_key, x.shape)
        if noise is not None:
            eps = jnp.asarray(noise.sample(noise_key, (rows,)))
            if eps.shape != x.shape:
                raise ValueError(
                    f"score_matching: noise draws points of shape {eps.shape[1:]}, and those of x have {x.shape[1:]}: "
                    "coordinates would share theirs. Give the law of one point, e.g. PoissonNoise(shape, num_extra)."
                )
        seen = row_contexts("score_matching", network, context, rows, label_key, drop_context)

        def one(x0: Array, eps: Array, t: Array, seen: PyTree) -> tuple[Array, Array]:
            x = noising.alpha(t) * x0 + noising.std(t) * eps
            target = convert(x0, x, t, noising, "data", predicts) if predicts != "noise" else eps
            return prediction(net, noising, x, t, seen), target / _scale(noising, t, predicts)

        predicted, target = jax.vmap(one)(x, eps, t, seen)
        with ppl.plate("rows", rows):
            law = dist.Normal(predicted, 1.0).to_event(x.ndim - 1)
            ppl.sample("target", law, obs=target)

    @objective
    def score_matching(model: ppl.Program, guide: None, *args: PyTree) -> Array:
        return ppl.draw(model, *args).log_density

    return score_matching(regression)


def row_strata(key: Key, rows: int) -> Float[Array, " rows"]:
    """A uniform number for each row, one in each of as many equal parts of [0, 1].

    Which part is whose is drawn: by the rows' order each would see a part of the times alone, and files are often sorted.
    """
    order_key, place_key = jax.random.split(key)
    part = jax.random.permutation(order_key, rows)
    return (part + jax.random.uniform(place_key, (rows,))) / rows


def from_network(
    network: object,
    noising: Noising,
    shape: tuple[int, ...],
    *,
    params: PyTree = None,
    predicts: Parametrisation = "velocity",
    context: PyTree = None,
    noise: dist.Distribution | None = None,
) -> Diffusion:
    """The diffusion model of a network trained by `score_matching`.

    Args:
        network: the network.
        noising: the noising process of its training.
        shape: shape of one point.
        params: `fit.params` of its training (with fit's `average=`, the averaged ones); the network's own values by default.
        predicts: what it was trained to predict.
        context: of one point: the class, or the tree of arrays that its network takes; None for the law over all contexts.
        noise: that of its training.

    Returns:
        A `Diffusion` without a known log-density.

    Raises:
        ValueError: a context that the network does not take.
    """
    if params is not None:
        network = trained(network, params)
    seen = one_context("from_network", network, context)

    def score(x: Array, t: Array) -> Array:
        value = prediction(network, noising, x, t, seen) * _scale(noising, t, predicts)
        return convert(value, x, t, noising, predicts, "score")

    return Diffusion(noising, score, tuple(shape), noise=noise)


def guided(unconditional: Diffusion, conditional: Diffusion, scale: float) -> Diffusion:
    """Classifier-free guidance as usually done: the score (1 - scale) s_u + scale s_c, and no weights.

    It is the score of no diffusion model. For the geometric average q_u^(1 - scale) q_c^scale itself use
    `inference.diffusion.fkc([unconditional, conditional], times, exponents=[1 - scale, scale])`, whose particles move just so and
    are weighted.

    Args:
        unconditional: the model with the score s_u.
        conditional: the model with the score s_c.
        scale: 1 for the conditional model, above 1 for more guidance.

    Raises:
        ValueError: models of two noising processes or shapes, whose scores at one time are those of unlike noise.

    Reference: Ho and Salimans 2022, arXiv:2207.12598, equation 6.
    """
    one, other = unconditional.noising, conditional.noising
    is_one = not is_concrete((vars(one), vars(other))) or is_one_process(one, other)
    if not is_one or unconditional.shape != conditional.shape:
        raise ValueError(
            f"guided: the models have the noising processes {one} and {other}, and points of shape {unconditional.shape} and "
            f"{conditional.shape}; scores add up at one noise and one point. Give two of one process."
        )
    score = lambda x, t: (
        (1 - scale) * unconditional.score_at(x, t) + scale * conditional.score_at(x, t)
    )
    return Diffusion(conditional.noising, score, conditional.shape, noise=conditional.noise)


def classifier_guided(diffusion: Diffusion, log_prob: Any, scale: float = 1.0) -> Diffusion:
    """Classifier guidance: the score s + scale grad log p(y | x_t), and no weights.

    Args:
        diffusion: the model of all x.
        log_prob: `(x, t) -> log p(y | x_t = x)`, differentiable.
        scale: exponent of the classifier.

    Validity: at scale 1 and for the exact classifier the conditional diffusion model; otherwise a heuristic. With weights:
    `inference.diffusion.fkc(diffusion, times, reward=log_prob)`.

    Reference: Dhariwal and Nichol 2021, arXiv:2105.05233, algorithm 1.
    """
    check_noise("classifier_guided", diffusion)
    score = lambda x, t: diffusion.score_at(x, t) + scale * jax.grad(log_prob)(x, t)
    return Diffusion(diffusion.noising, score, diffusion.shape)


def prediction(network: Any, noising: Noising, x: Array, t: Time, context: PyTree) -> Array:
    """What a network says of a point at a noising time."""
    return network(*_inputs(noising, x, t), context)


def _inputs(noising: Noising, x: Array, t: Time) -> tuple[Array, Array]:
    """What a network sees of a point: scaled to unit variance for data of unit variance, and the level of its noise."""
    alpha, std = noising.alpha(t), noising.std(t)
    return x / jnp.sqrt(alpha**2 + std**2), 0.25 * jnp.log(std / alpha)


def _scale(noising: Noising, t: Array, predicts: str) -> Array:
    """Standard deviation of the target for data of unit variance."""
    power = noising.alpha(t) ** 2 + noising.variance(t)
    return jnp.sqrt(power) if predicts == "velocity" else jnp.ones(())


def convert(
    value: Float[Array, " *shape"],
    x: Float[Array, " *shape"],
    t: Time,
    noising: Noising,
    source: Parametrisation,
    target: Parametrisation,
) -> Float[Array, " *shape"]:
    """A prediction at x = alpha x_0 + std eps, in another parametrisation.

        score     grad log q_t(x) = -eps / std
        noise     eps
        data      x_0
        velocity  alpha eps - std x_0
        flow      d alpha/dt x_0 + d std/dt eps, the velocity dx/dt of the probability flow

    Args:
        value: the prediction, E[. | x_t = x] if exact.
        x: the noisy point.
        t: its noising time.
        noising: the process.
        source: what `value` is.
        target: what is wanted.

    Raises:
        ValueError: an unknown name.

    Validity: exact where alpha(t) and std(t) are positive. Near t = 0 "noise" and "score" from "data" lose digits, near the end
    "data" from "noise" and "score" does, as far as x holds no trace of what is asked.

    Reference: Salimans and Ho 2022, arXiv:2202.00512 (velocity); Lipman et al. 2023, arXiv:2210.02747 (flow).
    """
    for name in (source, target):
        if name not in get_args(Parametrisation):
            raise ValueError(
                f"convert: unknown parametrisation {name!r}. Use one of {', '.join(map(repr, get_args(Parametrisation)))}."
            )
    if source == target:
        return value
    alpha, std = noising.alpha(t), noising.std(t)
    rates = _rates(noising, t) if "flow" in (source, target) else (alpha, std)
    data, noise = _data_and_noise(value, x, alpha, std, rates, source)
    if target == "score":
        return -noise / std
    if target == "velocity":
        return alpha * noise - std * data
    if target == "flow":
        return rates[0] * data + rates[1] * noise
    return data if target == "data" else noise


def _rates(noising: Noising, t: Time) -> tuple[Array, Array]:
    """D alpha / dt and d std / dt."""
    t = jnp.asarray(t, float)
    return jax.grad(noising.alpha)(t), jax.grad(noising.std)(t)


def _data_and_noise(
    value: Array, x: Array, alpha: Array, std: Array, rates: tuple[Array, Array], source: str
) -> tuple[Array, Array]:
    """(x_0, eps) with x = alpha x_0 + std eps."""
    if source == "data":
        return value, (x - alpha * value) / std
    if source == "velocity":
        power = alpha**2 + std**2
        return (alpha * x - std * value) / power, (std * x + alpha * value) / power
    if source == "flow":
        determinant = alpha * rates[1] - std * rates[0]
        return (
            (rates[1] * x - std * value) / determinant,
            (alpha * value - rates[0] * x) / determinant,
        )
    noise = value if source == "noise" else -std * value
    return (x - std * noise) / alpha, noise
