"""Lower and upper bounds of the evidence where a posterior draw is known: on data that the model draws, or from draws at hand."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import typed_key
from ...ppl._data import named_data
from ...ppl._show import shown
from ...ppl._types import Key
from ...ppl.densities import StochasticProgram, log_mean_exp, refuse_scaled
from ...ppl.traces import check_match, with_penalties
from .._arguments import made_by
from .._simulated import refuse_unlike_draws
from ..fitting.starts import AutoMeanField, AutoWhitenedNormal
from ..inputs import checked

Array = jax.Array
LEAST_UNSEEN = 0.05  # share of the draws' mass that is worth a warning


@shown
@dataclasses.dataclass(frozen=True)
class EvidenceBracket:
    """See `evidence_bracket`; printing it shows both bounds. Nats.

    Attributes:
        lower: one estimate below log p(data) for each simulation, in expectation.
        upper: one above.
        num_particles: behind each.
        of: what there is one of for each estimate, "simulated data sets" or "draws".
    """

    lower: Float[np.ndarray, " simulations"]
    upper: Float[np.ndarray, " simulations"]
    num_particles: int
    of: str = "simulated data sets"

    @property
    def gap(self) -> tuple[float, float]:
        """Mean of upper - lower and its standard error: what inference loses, at most; 0 for the exact posterior."""
        return _mean(self.upper - self.lower)

    @property
    def unseen(self) -> tuple[float, float] | None:
        """Share of the posterior where the guide hardly ever draws, and its standard error; None with simulated data or K > 1.

        The share of the given draws whose weight is above every weight that as many draws of the guide had. Near 1 / S times the
        largest weight for a guide that covers the posterior; the mass of the modes that it has lost, for one that has.
        """
        if self.of != "draws" or self.num_particles > 1:
            return None
        return _mean((self.upper > self.lower.max()).astype(float))

    def standard_error(self, num_draws: int) -> float | None:
        """Relative standard error of Z-hat, the mean weight of `num_draws` draws of the guide; None with simulated data or K > 1.

            sqrt(Var[w / Z] / num_draws),     Var[w / Z] = E_guide[(w / Z)^2] - 1 = E_posterior[w / Z] - 1

        by both expectations, the larger one. The first is the spread of the weights of the guide's own draws: too small where
        rare draws have large weights, of which most samples have none. The posterior draws these as often as they count, so that
        the second, from given draws, sees them, and what the guide has lost.

        Args:
            num_draws: independent draws behind Z-hat.
        """
        if self.of != "draws" or self.num_particles > 1:
            return None
        log_z = np.logaddexp.reduce(self.lower) - np.log(len(self.lower))
        own, given = np.exp(self.lower - log_z), np.exp(self.upper - log_z)
        return float(np.sqrt(max(own.var(ddof=1), given.mean() - 1) / num_draws))

    def _bounds(self) -> dict[str, str]:
        rows = {"lower": _mean(self.lower), "upper": _mean(self.upper), "gap": self.gap}
        return {name: f"{mean:.4g} +- {error:.2g}" for name, (mean, error) in rows.items()}

    def _facts(self) -> dict[str, PyTree]:
        bounds = {name: f"{bound} nats" for name, bound in self._bounds().items()}
        return (
            bounds
            | {
                self.of: len(self.lower),
                "num_particles": f"{self.num_particles} behind each bound",
            }
            | (
                {}
                if self.unseen is None
                else {"unseen": f"{self.unseen[0]:.2g} +- {self.unseen[1]:.1g} of the draws' mass"}
            )
        )

    def __str__(self) -> str:
        parts = [f"{name} {bound}" for name, bound in self._bounds().items()]
        return (
            f"log evidence in nats, mean over {len(self.lower)} {self.of} with {self.num_particles} particles: "
            + ", ".join(parts)
        )


@checked_call
def evidence_bracket(
    model: ppl.Program | Callable[..., PyTree],
    guide: ppl.Program | Callable[..., PyTree],
    key: Key,
    *args: PyTree,
    data_fn: Callable[..., PyTree] | None = None,
    draws: Mapping[str, Array] | None = None,
    num_particles: int = 1,
    num_simulations: int = 100,
    batch_size: int | None = None,
    **kwargs: PyTree,
) -> EvidenceBracket:
    """Bound log p(x) from both sides by importance sampling, with draws z* of the posterior: the model's own, or given ones.

        lower = log 1/K sum_{k=1..K} w(z_k),   upper = log 1/K [w(z*) + sum_{k=2..K} w(z_k)],

    with z_k ~ q(. | x) and w(z) = p(x, z) / q(z | x). With `data_fn` the model draws z* and x together: given x, z* is an exact
    draw from the posterior, so that E[lower] <= log p(x) <= E[upper]. For K = 1 the mean gap is KL(q || p) + KL(p || q) of guide
    and posterior, whatever the evidence is, and it vanishes as K grows: how far a trained guide (or a proposal with K particles)
    is from the truth.

    With `draws` x is the data at hand and z* are draws of its posterior from elsewhere, tempered particles or a long chain. The
    mean of `upper` at K = 1 is then the evidence upper bound (EUBO), which sees what the lower one cannot: modes where the guide
    never goes.

    Args:
        model: the program, with its parameters bound (`Fit.model`).
        guide: the proposal, with its parameters bound (`Fit.guide`).
        key: PRNG key of either kind.
        args: the model's arguments; with `data_fn` observations in them give shapes only.
        kwargs: keyword arguments of the program; one with the name of an option here goes by position.
        data_fn: observed sites by name, as the model drew them -> the arguments with which model and guide are then run, a tuple,
            or a dict by name.
        draws: in place of `data_fn`, latent site -> values [S, ...], equally weighted draws of the posterior given `args`, as
            `choices` of what `infer` returned.
        num_particles: K.
        num_simulations: S, data sets; with `draws` their number counts.
        batch_size: simulations that run at once; None for all.

    Returns:
        An `EvidenceBracket`.

    Raises:
        ValueError: sizes below 1; log-probs scaled by subsampling; with `data_fn`, a model with a factor; neither or both of
            `data_fn` and `draws`, or draws of different numbers; a guide with auxiliary sites, other than that of `fit(model)`.
        TypeError: model or guide with an estimated density; `data_fn` returns neither a tuple nor a dict.

    Warns:
        UserWarning: with `draws` and K = 1, more than 5 % of the draws' mass is `unseen`, by three standard errors.

    Validity: both inequalities hold in expectation, for every K and every guide; averages over S have the errors printed. That
    the gap is small on data of the model says nothing about other data. Given `draws` are taken at their word: the upper bound
    is one for those of the posterior, and errors are those of independent draws.

    Example:
        >>> from lapilli import inference, ppl
        >>> import jax, numpyro.distributions as dist
        >>> def model(x):
        ...     z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ...     ppl.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> posterior = lambda x: ppl.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> bracket = inference.diagnostics.evidence_bracket(
        ...     model, posterior, jax.random.key(0), 0.0, data_fn=lambda seen: (seen["x"],)
        ... )
        >>> abs(bracket.gap[0]) < 1e-5
        True

    Reference: Grosse, Ghahramani and Adams 2015, arXiv:1511.02543 (bidirectional Monte Carlo), for importance sampling.
    """
    args = checked(evidence_bracket, model, args, kwargs)
    check_counts("evidence_bracket", num_particles=num_particles)
    num_simulations = num_simulations if draws is None else _count(draws)
    check_counts("evidence_bracket", 2, num_simulations=num_simulations)
    if (data_fn is None) == (draws is None):
        raise ValueError(
            f"evidence_bracket: {'neither' if draws is None else 'both'} of data_fn and draws were given. Give data_fn, for data "
            "that the model draws, or draws of the posterior given the arguments."
        )
    programs = ppl.as_program(model), ppl.as_program(guide)
    for role, program in zip(("model", "guide"), programs, strict=True):
        if isinstance(program, StochasticProgram):
            raise TypeError(
                f"evidence_bracket: the {role} has an estimated density, and the weight of the true draw would be none. Give the "
                "program that it was made of."
            )
    p, q = programs

    def log_weight(
        choices: Mapping[str, Array], data: tuple[PyTree, ...], auxiliary: frozenset[str]
    ) -> Array:
        return p.log_density(choices, *data) - _log_density(q, choices, data, auxiliary)

    def simulate(key: Array, given: Mapping[str, Array] | None) -> tuple[Array, Array]:
        model_key, guide_key = jax.random.split(key)
        if data_fn is not None:
            trace = p.predict_trace(model_key, {}, *args)
            refuse_scaled("evidence_bracket", trace.sites)
            refuse_unlike_draws("evidence_bracket with data_fn", p, trace.sites)
            truth = trace.choices
            data = made_by("evidence_bracket: data_fn", data_fn(trace.observed))
        else:
            assert given is not None
            truth, data = dict(given), args
            trace = p.trace(truth, *data)

        auxiliary = jax.eval_shape(lambda key: q.simulate(key, *data), guide_key).auxiliary

        def particle(key: Array) -> Array:
            drawn = q.simulate(key, *data)
            refuse_scaled("evidence_bracket", trace.sites, drawn.sites)
            scored = p.trace(drawn.shared_choices, *data)
            penalties = check_match(scored, drawn, ("inside", "covers"))
            scored = with_penalties(scored, penalties)
            return scored.log_density - drawn.log_density

        log_weights = jax.vmap(particle)(jax.random.split(guide_key, num_particles))
        with_truth = log_weights.at[0].set(log_weight(truth, data, auxiliary))
        return log_mean_exp(log_weights), log_mean_exp(with_truth)

    keys = jax.random.split(typed_key(key), num_simulations)
    told = "evidence_bracket: the value of site '{}'"
    given = None if draws is None else jax.tree.map(jnp.asarray, named_data(draws, told))
    size = batch_size or num_simulations
    run = jax.jit(lambda *rows: jax.lax.map(lambda row: simulate(*row), rows, batch_size=size))
    lower, upper = run(keys, given)
    of = "simulated data sets" if draws is None else "draws"
    bracket = EvidenceBracket(np.asarray(lower), np.asarray(upper), num_particles, of)
    remedy = "Train it on these draws, or temper the target"
    if (text := lost_modes(bracket, "evidence_bracket", remedy)) is not None:
        warnings.warn(text, UserWarning, stacklevel=2)
    return bracket


def lost_modes(bracket: EvidenceBracket, name: str, remedy: str) -> str | None:
    """What to say where more of the draws' mass is unseen than sampling explains; None elsewhere."""
    if bracket.unseen is None:
        return None
    share, error = bracket.unseen
    if not share - 3 * error > LEAST_UNSEEN:
        return None
    return (
        f"{name}: {share:.0%} of the draws of the target have weights above all those of {len(bracket.lower)} draws of the "
        f"guide: it has lost that much of the posterior, and its own draws and weights do not show it. "
        f"Evidence in nats: lower {bracket.lower.mean():.4g}, upper {bracket.upper.mean():.4g}. {remedy}."
    )


def _log_density(
    guide: ppl.Program,
    choices: Mapping[str, Array],
    data: tuple[PyTree, ...],
    auxiliary: frozenset[str],
) -> Array:
    """Of the guide at given values of the model's sites.

    Raises:
        ValueError: the guide has auxiliary sites that these values do not determine.
    """
    if not auxiliary:
        return guide.log_density(choices, *data)
    fn = guide.fn
    if not isinstance(fn, AutoWhitenedNormal | AutoMeanField) or len(auxiliary) > 1:
        raise ValueError(
            f"evidence_bracket: the guide draws auxiliary sites {sorted(auxiliary)}, which the draws of the model's sites do not "
            "have, so that its density there is not known and the upper bound would be none. Give a guide that draws the "
            "model's sites by name, or that of fit(model)."
        )
    # One vector of unconstrained values, mapped one to one on the sites: drawn from it, these are point masses with the Jacobian.
    point = fn.space.point(choices)
    return guide.generate(jax.random.key(0), {next(iter(auxiliary)): point}, *data)[0].log_density


def _count(draws: Mapping[str, Array]) -> int:
    """The number of draws, which all sites agree on."""
    counts = {name: np.shape(x)[0] if np.ndim(x) else 0 for name, x in draws.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(
            f"evidence_bracket: draws have the numbers {counts} by site. Give every latent site's values along one leading "
            "axis of draws, at least two."
        )
    return next(iter(counts.values()))


def _mean(x: np.ndarray) -> tuple[float, float]:
    return float(x.mean()), float(x.std(ddof=1) / len(x) ** 0.5)
