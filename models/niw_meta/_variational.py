"""Adaptation at test time by variational inference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints

from ... import inference, ppl
from ...inference.local._local_model import law_at, normal_prior
from ._episodes import Episodes
from ._evaluate import adapt

Array = jax.Array


def adapt_by_vi(
    model: ppl.Program,
    key: Array,
    episodes: Episodes,
    num_draws: int,
    *,
    optimizer: object,
    num_steps: int,
) -> dict[str, Array]:
    """Draws of weights given the supports of new episodes, from q(theta_i) = Normal(m_i, v_i) fitted by gradient steps.

        max over m_i, v_i of  E_q[log p(support_i | theta)] - KL(q || p(theta)),  from the population's own mean and scale.

    What `adapt` has in closed form is searched for here, with a diagonal covariance: slower, and no expansion of the likelihood.
    The paper adapts in this way after training.

    Args:
        model: model with fitted parameters (`Fit.model`), of an infinite population.
        key: PRNG key.
        episodes: new episodes; labels of the queries are not read, and may be None.
        num_draws: S.
        optimizer: an optax transformation.
        num_steps: gradient steps, each with one draw of every episode's weights.

    Returns:
        Draws by site, "theta" [S, episodes, 1, d], for `predict`.

    Raises:
        ValueError: the model is of a finite population, or its parameters are not bound.
    Reference: Kim and Hospedales 2024, arXiv:2306.09702, equation 13.
    """
    bound = model.params
    if not isinstance(bound, ppl.Params) or not {"loc", "scale"} <= set(bound):
        raise ValueError(
            f"adapt_by_vi: the model has the fitted parameters {sorted(bound or {})}, but the population's 'loc' and 'scale' are "
            "needed. Give the model of a fit (Fit.model) with population='infinite'; for a finite one use adapt."
        )
    num_episodes = len(episodes.support.x)
    episodes = episodes.stated()
    population = law_at(model, "theta", {}, (episodes,), ppl.constrain(bound))
    loc, scale, _ = normal_prior(population, "theta")

    @ppl.model
    def guide(episodes: Episodes) -> None:
        law = dist.Normal(
            ppl.param("episode_loc", loc),
            ppl.param("episode_scale", scale, constraint=constraints.positive),
        )
        with ppl.plate("episodes", num_episodes, dim=-2):
            ppl.sample("theta", law.to_event(1))

    hidden = episodes._replace(
        query=episodes.query._replace(mask=jnp.zeros_like(jnp.asarray(episodes.query.mask)))
    )
    objective = inference.elbo(model, guide, kl="analytic")
    fit_key, draw_key = jax.random.split(key)
    params = objective.init(fit_key, hidden)
    params.update(bound)
    fixed = {name: "frozen" for name in params if not name.startswith("episode_")}
    fit = inference.fit(
        objective, {"episode_*": optimizer, **fixed}, (hidden,), num_steps=num_steps, key=fit_key, params=params, progress=False
    )  # fmt: skip
    return adapt(fit.guide, draw_key, episodes, num_draws)
