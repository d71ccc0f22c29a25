"""Feynman-Kac correctors over tokens: powers, products and tilts of discrete diffusion models by weighted particles.

With U and rho of `_kernels`, w_n the exponents and h the reward, a step from x to y has the kernel and weight

    M_n(y | x) = U(y | x) prod_i rho_i(y)^w_ni / C_n(x),
    log G_n = log C_n(x) + sum_i (g_i - w_ni log rho_i(y)) + h_n(y) - h_{n-1}(x),

C_n(x) the sum that normalises M, variable by variable; where one variable is drawn a step, a sum over all that are masked. g_i is

    path     w_ni log rho_i(y) + (w_ni - w_{n-1,i}) L_i(x),   L_i(x) the sum of log rho_i along the path so far
    exact    w_ni l_i(y) - w_{n-1,i} l_i(x),   l_i the model's log-marginal of the tokens shown.

Invariants: along a path the product of M and G telescopes, to U exp(h) prod_i rho_i^w_i ("path") or to U exp(h) prod_i
exp(w_i l_i) ("exact"), whatever M is; with "path" weights alone and exponents that are numbers G depends on where a step starts
only, but for the reward, and a model alone has weights 1. A particle carries what the networks say at its place, so that each is
asked once a step.

In uniform diffusion a row that knows nothing has probability K^-D, which stands there once and ought to sum_i w_i times: the
first weight makes up for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from ....ppl._checks import check_counts
from ....ppl._show import shown
from ...particles.engine import FeynmanKac
from .._composition import Composition, Exponent
from .._rewards import as_number
from ..grid import as_exponents
from ._kernels import log_ratios, log_reference, refuse_logits
from ._model import TokenDiffusion

Ratio = Literal["exact", "path"]


@shown
class TokenParticle(NamedTuple):
    """State of a particle of `fkc_tokens`.

    Attributes:
        tokens: 0 for masked, v + 1 for the value v, [D].
        log_probs: what each network says there, [models, D, K].
        log_densities: of the tokens under each model, along the path or by its log-marginal, [models].
        reward: h there, nats.
    """

    tokens: Int[Array, " variables"]
    log_probs: Float[Array, "models variables values"]
    log_densities: Float[Array, " models"]
    reward: Float[Array, ""]

    @property
    def x(self) -> Int[Array, " variables"]:
        """Values 0 to K - 1, -1 for masked."""
        return self.tokens - 1


def fkc_tokens(
    diffusions: TokenDiffusion | Sequence[TokenDiffusion],
    num_steps: int | None = None,
    *,
    exponents: Exponent | Sequence[Exponent] | Array = 1.0,
    reward: Callable[[Array, Array], Array] | None = None,
    weights: Literal["auto", "exact", "path"] = "auto",
) -> FeynmanKac:
    """Sample p(x) proportional to exp(h(x)) prod_i q_i(x)^w_i from discrete diffusion models q_i, by weighted particles.

    `fkc` for rows of tokens: `smc(fkc_tokens(...), key, num_particles=...)` returns particles with values `.x`, and
    `log_evidence`, the log of the sum of exp(h) prod q_i^w_i over all rows. Some targets:

        annealing to temperature 1 / beta     fkc_tokens(q, exponents=beta)
        guidance                              fkc_tokens([unconditional, conditional], exponents=[1 - b, b])
        product of experts                    fkc_tokens([q1, q2])
        reward                                fkc_tokens(q, reward=lambda tokens, t: ...)

    Args:
        diffusions: one or several models of rows of one size and one kind of noise.
        num_steps: N; the times are 1 - n / N. In a step of masked diffusion several variables may appear, independently of each
            other given the tokens before. By default, for masked diffusion only, one variable a step: which one is drawn with
            its value, and the network is told the share that is masked as the time.
        exponents: as for `fkc`; numbers, functions of the time, or arrays.
        reward: `(tokens, t) -> h_t(tokens)` in nats for one row. At t = 0 nothing is masked, and h_0 is the reward of the result;
            before, it is a look-ahead, which changes the variance alone as long as it is finite: where it is -inf before t = 0
            the evidence is NaN, since rows that die there might be allowed in the end. Need not be differentiable.
        weights: "exact" (needs `log_marginal` of all models), "path" (ratios of kernels); "auto" takes for each model "exact" if
            its marginal is known and "path" if it is not.

    Returns:
        A `FeynmanKac` with states `TokenParticle`.

    Raises:
        ValueError: models of rows of several sizes or kinds; exponents that do not fit; uniform noise without `num_steps`; a
            marginal that "exact" needs; a network, a marginal or a reward that returns another shape.
        TypeError: something else than `TokenDiffusion`.

    Validity: E[exp(log_evidence)] is the sum over x of the following, and weighted particles follow it, for every number of steps
    and of particles; all steps are exact, none is taken for short.
    "exact": exp(h(x) + sum_i w_i log_marginal_i(x)), whatever the networks say, as long as they rule out nothing.
    "path": exp(h(x)) E[prod_i (p_i(path) / F(path | x))^w_i], a mean over noised paths F of x, with p_i(path) the law of model
    i's own chain on this grid. This is exp(h) prod_i q_i^w_i where each chain is the reverse of noising for a law q_i:
    conditionals of one law and one variable a step, or N -> infinity. With one model and w = 1 it is always exp(h) times the law
    of the model's chain (`models.diffusion.token_law`); otherwise, where several variables appear in a step, it is a mean of
    powers and not the power of a mean. A model with a negative exponent must not give probability 0 to what others allow.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lapilli import inference
        >>> coins = inference.diffusion.TokenDiffusion(lambda tokens, t: jnp.log(jnp.array([[0.2, 0.8]] * 3)), 3, 2)
        >>> cold = inference.diffusion.fkc_tokens(coins, exponents=2.0)
        >>> result = inference.smc(cold, jax.random.key(0), num_particles=10)
        >>> round(float(result.log_evidence), 4)  # 3 log(0.2^2 + 0.8^2)
        -1.157

    Reference: He et al. 2025, arXiv:2506.05668 (path ratios, discrete diffusion among them); Skreta et al. 2025,
    arXiv:2503.02819; Ou et al. 2024, arXiv:2406.03736 (masked diffusion as any-order autoregression).
    """
    models = _checked(diffusions, num_steps)
    first, is_single = models[0], num_steps is None
    size, num_values, kind = first.num_variables, first.num_values, first.kind
    num_steps = size if num_steps is None else num_steps
    times = jnp.arange(num_steps, -1, -1) / num_steps
    powers = as_exponents(exponents, times, len(models))
    table = Composition(models, tuple(powers)).exponents_at(times)  # pyright: ignore[reportArgumentType]
    varies = any(callable(w) for w in powers)
    ratios = _ratios(models, weights)
    reward_at = (
        (lambda tokens, t: jnp.zeros(())) if reward is None else as_number(reward, "fkc_tokens")
    )
    log_base = -size * jnp.log(num_values) * (table[-1].sum() - 1) if kind == "uniform" else 0.0

    def at(tokens: Array, n: PyTree, followed: Array) -> TokenParticle:
        t = times[n]
        asked = lambda: jnp.stack([model.log_probs(tokens, t) for model in models])
        nothing = lambda: jnp.zeros((len(models), size, num_values))
        log_probs = jax.lax.cond(n < num_steps, asked, nothing)
        densities = [
            model.log_density(tokens, t) if ratio == "exact" else followed[i]
            for i, (model, ratio) in enumerate(zip(models, ratios, strict=True))
        ]
        value = reward_at(tokens, t)
        return TokenParticle(tokens, log_probs, jnp.stack(densities), value)

    def init(key: Array) -> TokenParticle:
        tokens = jnp.zeros(size, int)
        if kind == "uniform":
            tokens = jax.random.randint(key, (size,), 1, num_values + 1)
        return at(tokens, jnp.zeros((), int), jnp.zeros(len(models)))

    def parts(x: TokenParticle, n: Array) -> tuple[Array, Array]:
        """Log rho of all models, [models, D, K + 1], and logits of M not normalised, [D, K + 1]."""
        t, s = times[n - 1], times[n]
        rho = jax.vmap(lambda p: log_ratios(p, x.tokens, t, s, kind))(x.log_probs)
        base = log_reference(x.tokens, t, s, kind, num_values)
        if is_single:  # whichever is masked, evenly
            is_free = (x.tokens == 0)[:, None] & (jnp.arange(num_values + 1) > 0)
            base = jnp.where(is_free, -jnp.log((x.tokens == 0).sum()), -jnp.inf)
        return rho, base + _weighed(table[n], rho)

    def log_total(logits: Array) -> Array:
        """Log C."""
        return jax.nn.logsumexp(logits) if is_single else jax.nn.logsumexp(logits, 1).sum()

    def chosen(values: Array, x: TokenParticle, tokens: Array) -> Array:
        """The sum over variables of a step's values, [..., D, K + 1], at the tokens after it."""
        found = jnp.take_along_axis(values, jnp.broadcast_to(tokens[:, None], (*values.shape[:-1], 1)), -1)[..., 0]  # fmt: skip
        return (jnp.where(tokens != x.tokens, found, 0.0) if is_single else found).sum(-1)

    def kernel(key: Array, x: TokenParticle, n: Array) -> TokenParticle:
        rho, logits = parts(x, n)
        if is_single:
            index = jax.random.categorical(key, logits.ravel())
            tokens = x.tokens.at[index // (num_values + 1)].set(index % (num_values + 1))
        else:
            tokens = jax.random.categorical(key, logits)
        return at(tokens, n, x.log_densities + chosen(rho, x, tokens))

    def log_potential(x: TokenParticle, y: TokenParticle, n: Array) -> Array:
        def start() -> Array:
            return log_base + _weighed(table[0], x.log_densities) + x.reward

        def step() -> Array:
            rho, logits = parts(x, n)
            now, then = table[n - 1], table[n]
            passed = chosen(rho, x, y.tokens)
            # -inf before the end: rows in which it was to be kept in the end would be missing.
            is_lost = (y.reward == -jnp.inf) & (n < num_steps)
            total = log_total(logits) + jnp.where(is_lost, jnp.nan, y.reward - x.reward)
            for i, ratio in enumerate(ratios):
                before = x.log_densities[i]
                if ratio == "exact":
                    total += then[i] * y.log_densities[i] - now[i] * before
                    total -= _weighed(then[i : i + 1], passed[i : i + 1])
                elif varies:
                    total += (then[i] - now[i]) * before
            return total

        return jax.lax.cond(n == 0, start, step)

    def log_transition(x: TokenParticle, y: TokenParticle, n: Array) -> Array:
        _, logits = parts(x, n)
        is_reached = ((y.tokens != x.tokens).sum() == 1) if is_single else True
        return jnp.where(is_reached, chosen(logits, x, y.tokens) - log_total(logits), -jnp.inf)

    is_followed = varies and "path" in ratios
    return FeynmanKac(
        init,
        kernel,
        log_potential,
        num_steps,
        None if is_followed else log_transition,
        has_memory=True,
    )


def _weighed(w: Array, values: Array) -> Array:
    """sum_i w_i values_i, where 0 times -inf is 0."""
    shaped = w.reshape(-1, *[1] * (values.ndim - 1))
    return jnp.where(shaped == 0, 0.0, shaped * values).sum(0)


def _ratios(models: Sequence[TokenDiffusion], weights: str) -> list[Ratio]:
    if weights not in ("auto", "exact", "path"):
        raise ValueError(f"fkc_tokens: weights must be 'auto', 'exact' or 'path', got {weights!r}.")
    known = [model.log_marginal is not None for model in models]
    if weights == "exact" and not all(known):
        raise ValueError(
            f"fkc_tokens: weights='exact' need the log_marginal of every model, and model {known.index(False)} has none. Use "
            "weights='path', which needs the networks only."
        )
    return ["exact" if k and weights != "path" else "path" for k in known]


def _checked(diffusions: Any, num_steps: int | None) -> tuple[TokenDiffusion, ...]:
    models = tuple(diffusions) if isinstance(diffusions, Sequence) else (diffusions,)
    if not models or not all(isinstance(m, TokenDiffusion) for m in models):
        kinds = [type(m).__name__ for m in models]
        raise TypeError(f"fkc_tokens: diffusions must be TokenDiffusion, got {kinds}.")
    first, *others = models
    facts = lambda m: (m.num_variables, m.num_values, m.kind)
    for other in others:
        if facts(other) != facts(first):
            raise ValueError(
                "fkc_tokens: all models need rows of one size and noise of one kind, got (variables, values, kind) "
                f"{facts(first)} and {facts(other)}."
            )
    if num_steps is not None:
        check_counts("fkc_tokens", num_steps=num_steps)
    elif first.kind == "uniform":
        raise ValueError(
            "fkc_tokens: one variable a step (num_steps=None) is for masked diffusion; uniform noise has no first and last "
            "variable. Give num_steps."
        )
    for model in models:
        refuse_logits(
            "fkc_tokens", model.network, model.num_variables, model.kind, model.num_values
        )
    return models
