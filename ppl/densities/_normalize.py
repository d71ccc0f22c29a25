"""`ppl.normalize`: the program that sampling importance resampling with N particles denotes.

Terms: target p~(x) (a program with its data), proposal q(x), W_i = p~(x_i) / q(x_i), mean W = 1/N sum_i W_i.
- a draw: x_1..x_N ~ q, j ~ Categorical(W_i / sum W), x = x_j, w = log p~(x_j) - log mean W.
- given x: x in one slot, the others ~ q, w = log p~(x) - log mean W. E[exp w] is the density q_N(x) of the draw.
The draw's law is that of the second line (slot uniform) times p~(x_j) / mean W, hence E[exp(-w) | x] = 1 / q_N(x). Parts
that are estimated themselves: as in `_marginal.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PyTree

from .._checks import check_counts
from .._types import ModelFn
from ..language import ChoiceMismatch, Program, matched, sample
from ..traces import Trace, particles
from ._stochastic import (
    Side,
    StochasticProgram,
    as_arrays,
    as_sampler,
    estimated,
    log_mean_exp,
    refuse_scaled,
)

Array = jax.Array


class Normalized(StochasticProgram):
    """The output of sampling importance resampling. Made by `ppl.normalize`."""

    def __init__(
        self, target: Program, proposal: Program, num_particles: int, index: str, strategy: object
    ) -> None:
        super().__init__(f"normalize[{index}]", {"target": target, "proposal": proposal})
        self.target, self.proposal = target, proposal
        self.num_particles, self.index, self.strategy = num_particles, index, strategy

    @property
    def bounds(self) -> dict[str, Side]:
        """See `StochasticProgram.bounds`; one particle is the proposal itself."""
        if self.num_particles > 1:
            return super().bounds
        if isinstance(self.proposal, StochasticProgram):
            return self.proposal.bounds
        return {"draw": "exact", "score": "exact"}

    def _with_parts(self, parts: Mapping[str, Program]) -> StochasticProgram:
        rest = self.num_particles, self.index, self.strategy
        return Normalized(parts["target"], parts["proposal"], *rest)

    def _draw(self, *args: PyTree, **kwargs: PyTree) -> Trace:
        if self.num_particles == 1:
            return self.proposal._draw(*args, **kwargs)
        # w_i = p(x_i) / q(x_i), i ~ w: given the draw x, E[1 / estimate] = 1 / q_N(x) with estimate = p(x) / mean_i w_i.
        log_weights, log_targets, q = particles(self.num_particles)(
            lambda: self._particle(args, kwargs)
        )()
        chosen = _index(self.index, self.strategy)._draw(log_weights).retval
        choices = {name: x[chosen] for name, x in q.choices.items()}
        log_density = log_targets[chosen] - log_mean_exp(log_weights)
        return estimated(self.label, choices, q.sites, log_density)

    def _score(self, choices: Mapping[str, PyTree], *args: PyTree, **kwargs: PyTree) -> Trace:
        choices = as_arrays(choices)
        q = self.proposal._score(choices, *args, **kwargs)
        if self.num_particles == 1:
            return q
        p = matched(self._target(choices, args, kwargs), q, ("covers",))
        refuse_scaled(self.label, p.sites, q.sites)
        # For given x it takes the place of one particle, and N - 1 fresh ones join it: E[p(x) / mean w] = q_N(x).
        others = particles(self.num_particles - 1)(lambda: self._particle(args, kwargs))()[0]
        log_weights = jnp.concatenate([(p.log_density - q.log_density)[None], others])
        return estimated(self.label, choices, q.sites, p.log_density - log_mean_exp(log_weights))

    def _particle(
        self, args: tuple[float, ...], kwargs: dict[str, PyTree]
    ) -> tuple[Array, Array, Trace]:
        """Log-weight and log-target of a proposed particle, and its trace."""
        q = self.proposal._draw(*args, **kwargs)
        p = matched(self._target(q.choices, args, kwargs), q, ("covers",))
        refuse_scaled(self.label, p.sites, q.sites)
        return p.log_density - q.log_density, p.log_density, q

    def _target(
        self, choices: Mapping[str, Array], args: tuple[float, ...], kwargs: dict[str, PyTree]
    ) -> Trace:
        try:
            return self.target._score(choices, *args, **kwargs)
        except ChoiceMismatch as err:
            raise ValueError(
                f"{self.label}: the proposal does not match the target: it misses {err.missing} and draws "
                f"{err.extra}, which the target does not have. Draw exactly the target's latent sites, or keep "
                "them with ppl.marginal(proposal, keep=[...])."
            ) from err


def normalize(
    program: ModelFn,
    *,
    proposal: ModelFn,
    num_particles: int,
    index: str = "index",
    strategy: object = None,
) -> Normalized:
    """The program that draws from `proposal` and resamples towards `program` (with its data): SIR with N particles.

    Its density q_N, the law of the resampled particle, is estimated: estimate_log_density(key, x) has E[exp] = q_N(x), and
    simulate's log_density w has E[exp(-w) | x] = 1 / q_N(x). q_1 is the proposal, and q_N tends to the posterior.

    Args:
        program: the target, a program with observations or factors; may be a `marginal` or another `normalize`.
        proposal: a program of the same arguments over the target's latent sites; its parameters are parameters of the
            whole. Or any object with the two methods, made as a pair.
        num_particles: N.
        index: name of the site of the resampled particle's number; two `normalize` in one program need two names.
        strategy: gradient strategy of that site ("enum": N evaluations of what follows; "reinforce"); an objective's
            `strategies={index: ...}` wins. Needed inside objectives, since the choice depends on parameters.

    Returns:
        A program, for `ppl.draw`, `ppl.score`, objectives (as a guide), `marginal` and `normalize`.

    Raises:
        ValueError: the proposal draws other sites than the target has, or missing cells (`obs_mask`) without their mask; a
            log-prob is scaled by subsampling and N > 1; inside an objective, the index has no strategy.

    Validity: both identities hold at every N, for a proposal that covers the target's support.

    Particles are whole draws: of B independent rows in a plate a weight is a product of B, and soon one particle has it all. Make
    the program of one row then, and run it on all of them, `jax.vmap(q.simulate)(keys, rows)`: each row is resampled by itself,
    and the sum of the rows' log-densities keeps both identities. A bound row by row is `iwelbo(per=...)`.

    Example:
        >>> from lapilli import ppl
        >>> import jax, numpyro.distributions as dist
        >>> def target(x):
        ...     z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ...     ppl.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def proposal(x):
        ...     ppl.sample("z", dist.Normal(0.0, 1.0))
        >>> q = ppl.normalize(target, proposal=proposal, num_particles=500)
        >>> draws = jax.vmap(lambda k: q.simulate(k, 2.0).choices["z"])(jax.random.split(jax.random.key(0), 500))
        >>> abs(float(draws.mean()) - 1.0) < 0.2  # the posterior is Normal(1, 0.5 ** 0.5)
        True

    Reference: Rubin 1987 (SIR); Cremer et al. 2017, arXiv:1704.02916; Lew et al. 2023, doi:10.1145/3591290.
    """
    label = f"normalize[{index}]"
    check_counts(label, num_particles=num_particles)
    target = as_sampler(program, f"{label}: the target")
    made = as_sampler(proposal, f"{label}: the proposal")
    return Normalized(target, made, num_particles, index, strategy)


def _index(name: str, strategy: object) -> Program:
    return Program(
        lambda log_weights: sample(name, dist.CategoricalLogits(log_weights), strategy=strategy)
    )
