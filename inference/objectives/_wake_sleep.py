"""Wake-sleep objectives: cross-entropies under weighted or simulated draws that count as constants.

Notation: z_1..z_K ~ r, w_k = p_theta(x, z_k) / r(z_k), v_k = w_k / sum_j w_j. r, w and v are held fixed, at the present
parameters: `grad` is the derivative of the objective in the parameters that are not held fixed, which is not the derivative of
`value` along all its dependences.

per="plate" (or a plate's name) weighs row by row and sums the rows' objectives, for data whose rows are independent given what is
outside: v_kn = w_kn / sum_j w_jn. One weight for all rows together would rest on one particle; and subsampled rows need it.

Missing cells m (`obs_mask`) that the guide leaves to the model are drawn from p_theta(m | z, what is seen), once for each z_k,
and are part of the draw: w_k = p_theta(x, m_k, z_k) / (q_phi(z_k) p_theta(m_k | z_k)), in which the law of the cells cancels.
log q_phi is that of the guide's own sites, so that the cells' law enters neither `wake_phi` nor its gradient; `forward_kl` is the
divergence of both together, KL(p(z, m | x) || q_phi(z) p(m | z)), of the same gradient. An objective that would move the cells'
law refuses them (`wake_theta`, `rws`, `log_variance`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import PyTree
from numpyro.primitives import Messenger

from ... import ppl
from ...ppl._checks import check_counts
from ...ppl._show import shown
from ...ppl._types import Message, ModelFn
from ...ppl.densities import log_mean_exp
from ...ppl.language import apply, joined, score_at
from ...ppl.traces import Inclusion, check_is_law, check_match, with_penalties
from .._arguments import made_by
from ._detached import CONSTANT, refuse_new_draws, sites_met
from ._factory import objective, recreated
from ._objective import Objective
from ._row_weights import log_density_of, plate_of, weight_of

Array = jax.Array
stop = jax.lax.stop_gradient
_SELF_NORMALISED = "of order 1/K, weights are self-normalised"


@recreated
def wake_phi(
    model: ModelFn,
    guide: ModelFn,
    *,
    num_particles: int,
    proposal: ModelFn | None = None,
    per: str = "joint",
    num_replicates: int = 1,
    check_jumps: ppl.checks.CheckJumps = True,
) -> Objective:
    """Wake-phase update of the guide: -sum_k v_k log q_phi(z_k) (nats, minimised); cross-entropy from posterior to guide.

    Args:
        model: program with observations, p.
        guide: program over the model's latent sites, q_phi, with an exact density.
        num_particles: K.
        proposal: r, a fixed program over the same sites (bind its parameters); None: the guide at its present parameters.
        per: "joint", "plate" or a plate's name; see above.
        num_replicates: independent estimates averaged.
        check_jumps: see `ppl.expectation`.

    Raises:
        ValueError: a latent site of the model is not proposed; a log-prob is scaled by subsampling under per="joint"; a site lies
            outside the plate.

    Validity: with r and v held fixed, value and gradient are unbiased for E[-sum_k v_k log q_phi(z_k)]. For the
    cross-entropy -E_{p(z | x)}[log q_phi(z)] and its gradient they are biased by O(1/K): self-normalised weights. The model
    gets no gradient. Discrete and continuous sites need no strategies.
    Reference: Bornschein and Bengio 2015, arXiv:1406.2751; Le et al. 2019, arXiv:1805.10469.
    """
    check_counts("wake_phi", num_particles=num_particles)

    @objective(direction="min", weighing="refused", bias=_SELF_NORMALISED)
    def wake_phi(model: ppl.Program, guide: ppl.Program, *args: PyTree) -> Array:
        weights, log_q, _, scale = _particles(model, guide, proposal, args, num_particles, per)
        return -jnp.sum(scale * _averaged(weights, log_q))

    return wake_phi(
        model,
        guide,
        strategies=CONSTANT,
        num_replicates=num_replicates,
        check_jumps=check_jumps,
    )


@recreated
def forward_kl(
    model: ModelFn,
    guide: ModelFn,
    *,
    num_particles: int,
    proposal: ModelFn | None = None,
    per: str = "joint",
    num_replicates: int = 1,
    check_jumps: ppl.checks.CheckJumps = True,
) -> Objective:
    """KL(p(z | x) || q_phi(z)) by self-normalised importance sampling (nats, minimised).

    value = sum_k v_k log(p(x, z_k) / q_phi(z_k)) - log 1/K sum_k w_k; never negative with r = q. The gradient is `wake_phi`'s.

    Args:
        model: program with observations, p.
        guide: program over the model's latent sites, q_phi.
        num_particles: K.
        proposal: r; None: the guide at its present parameters.
        per: "joint", "plate" or a plate's name; see above.
        num_replicates: independent estimates averaged.
        check_jumps: see `ppl.expectation`.

    Validity: as `wake_phi`: consistent in K, biased by O(1/K) at finite K. With the posterior itself as `proposal` both are
    unbiased.
    Reference: Bornschein and Bengio 2015, arXiv:1406.2751; Naesseth et al. 2020, arXiv:2003.10374.
    """
    check_counts("forward_kl", num_particles=num_particles)

    @objective(direction="min", weighing="refused", bias=_SELF_NORMALISED)
    def forward_kl(model: ppl.Program, guide: ppl.Program, *args: PyTree) -> Array:
        weights, log_q, log_p, scale = _particles(model, guide, proposal, args, num_particles, per)
        return jnp.sum(scale * (_averaged(weights, log_p - log_q) - log_mean_exp(weights)))

    return forward_kl(
        model,
        guide,
        strategies=CONSTANT,
        num_replicates=num_replicates,
        check_jumps=check_jumps,
    )


@recreated
def wake_theta(
    model: ModelFn,
    guide: ModelFn,
    *,
    num_particles: int,
    per: str = "joint",
    num_replicates: int = 1,
    check_jumps: ppl.checks.CheckJumps = True,
) -> Objective:
    """Wake-phase update of the model: log 1/K sum_k w_k (nats, maximised) with the guide held fixed.

    Args:
        model: program with observations, p_theta.
        guide: program over the model's latent sites; it gets no gradient. `ppl.marginal` and `ppl.normalize` too.
        num_particles: K.
        per: "joint", "plate" or a plate's name; see above.
        num_replicates: independent estimates averaged.
        check_jumps: see `ppl.expectation`.

    Validity: value unbiased for the importance-weighted bound, a lower bound of log p(x); gradient, sum_k v_k d/dtheta log
    p_theta(x, z_k), unbiased for the bound's derivative in theta, and biased by O(1/K) for that of log p(x).
    Reference: Bornschein and Bengio 2015, arXiv:1406.2751.
    """
    check_counts("wake_theta", num_particles=num_particles)

    @objective(weighing="refused")
    def wake_theta(model: ppl.Program, guide: ppl.Program, *args: PyTree) -> Array:
        def particle() -> tuple[Array, Array]:
            r = ppl.draw(ppl.detached(guide), *args)
            before = sites_met()
            p = ppl.score(model, r, *args)
            refuse_new_draws("wake_theta", before)
            return weight_of(p, jax.tree.map(stop, r), per)

        weights, scale = ppl.particles(num_particles)(particle)()
        return jnp.sum(scale[0] * log_mean_exp(weights))

    return wake_theta(
        model,
        guide,
        strategies=CONSTANT,
        num_replicates=num_replicates,
        check_jumps=check_jumps,
    )


@recreated
def rws(
    model: ModelFn,
    guide: ModelFn,
    *,
    num_particles: int,
    per: str = "joint",
    insomnia: float = 1.0,
    data_args: Callable[..., tuple[PyTree, ...]] | None = None,
    num_sleep_particles: int = 1,
    check_jumps: ppl.checks.CheckJumps = True,
) -> Objective:
    """Reweighted wake-sleep, both wake phases from the same K draws, every draw weighted (nats, maximised).

    value = log 1/K sum_k w_k. In theta the gradient is `wake_theta`'s; in phi it is the ascent direction

        i sum_k v_k d/dphi log q_phi(z_k) + (1 - i) E_{(z, x') ~ p}[d/dphi log q_phi(z | x')],   i = `insomnia`,

    `wake_phi`'s and `sleep`'s with their signs turned.

    Args:
        model: program with observations, p_theta.
        guide: program over the model's latent sites, q_phi.
        num_particles: K.
        per: "joint", "plate" or a plate's name; see above.
        insomnia: share of the wake phase in phi, in [0, 1]; 1 is wake alone, 0 sleep alone.
        data_args: see `sleep`; needed where insomnia < 1.
        num_sleep_particles: pairs (z, x') averaged in one estimate.
        check_jumps: see `ppl.expectation`.

    Raises:
        ValueError: insomnia outside [0, 1], or below 1 without `data_args`; the refusals of `wake_phi` and `sleep`.

    Validity: value unbiased for the importance-weighted bound. The gradients are those of different objectives, as their
    docstrings say; parameters that model and guide share get the sum. The sleep part is unbiased, the wake part as `wake_phi`'s.
    Reference: Bornschein and Bengio 2015, arXiv:1406.2751 (both phases for q); Le et al. 2019, arXiv:1805.10469; Pyro's
    ReweightedWakeSleep (insomnia).
    """
    check_counts("rws", num_particles=num_particles)
    if not 0 <= insomnia <= 1:
        raise ValueError(f"rws: insomnia must lie in [0, 1], got {insomnia}.")
    if insomnia < 1 and data_args is None:
        raise ValueError(
            f"rws: insomnia {insomnia} asks for a sleep phase, whose guide must see the model's own data. Give data_args, e.g. "
            "data_args=lambda observed, x: (observed['x'],), or insomnia=1."
        )

    # The wake phase in phi is a cross-entropy from the posterior.
    supports: tuple[Inclusion, ...] = ("inside", "covers") if insomnia > 0 else ("inside",)

    @objective(weighing="refused", bias=f"in the guide, {_SELF_NORMALISED}" if insomnia > 0 else "")
    def rws(model: ppl.Program, guide: ppl.Program, *args: PyTree) -> Array:
        def particle() -> tuple[Array, Array, Array]:
            r = ppl.draw(ppl.detached(guide), *args)
            before = sites_met()
            p = score_at(model, r, args, supports=supports)
            weight, scale = weight_of(p, jax.tree.map(stop, r), per)
            q = ppl.score(guide, r.choices, *args)
            refuse_new_draws("rws", before)
            return weight, log_density_of(q, plate_of(p, r, per)), scale

        weights, log_q, scale = ppl.particles(num_particles)(particle)()
        shares = stop(jax.nn.softmax(weights, axis=0))
        wake = (shares * (log_q - stop(log_q))).sum(0)
        total = jnp.sum(scale[0] * (log_mean_exp(weights) + insomnia * wake))
        if insomnia == 1:
            return total
        dream = lambda: _dream("rws", model, guide, data_args, args)
        asleep = ppl.particles(num_sleep_particles)(dream)().mean()
        return total + (1 - insomnia) * (asleep - stop(asleep))

    return rws(model, guide, strategies=CONSTANT, check_jumps=check_jumps)


@recreated
def sleep(
    model: ModelFn,
    guide: ModelFn,
    *,
    data_args: Callable[..., tuple[PyTree, ...]],
    num_replicates: int = 1,
    check_jumps: ppl.checks.CheckJumps = True,
) -> Objective:
    """Sleep-phase update of the guide: -E_{(z, x) ~ p}[log q_phi(z | x)] (nats, minimised).

    Args:
        model: program with observations; they are drawn, with the latent sites, at its present parameters. A simulator
            without a density observes a point mass, `sample("x", Delta(made).to_event(made.ndim), obs=x)`, with `made` computed
            from latent sites and noise of `ppl.rng_key`; no density of an observation is used.
        guide: program over the model's latent sites whose arguments hold the data.
        data_args: `(observed, *args) -> arguments of the guide`, a tuple, or a dict by name, where `observed` holds the drawn
            observations by site.
        num_replicates: independent pairs averaged.
        check_jumps: see `ppl.expectation`.

    Raises:
        ValueError: the model has no observed site; the guide does not match.
        TypeError: `data_args` returns neither a tuple nor a dict.

    Validity: value and gradient (in phi; the model gets none) are unbiased: it is the forward KL averaged over the model's own
    data, up to a constant, without self-normalisation.
    Reference: Hinton et al. 1995 (wake-sleep); Le et al. 2019, arXiv:1805.10469.
    """

    @objective(direction="min", weighing="refused")
    def sleep(model: ppl.Program, guide: ppl.Program, *args: PyTree) -> Array:
        return -_dream("sleep", model, guide, data_args, args)

    made = sleep(
        model,
        guide,
        strategies=CONSTANT,
        num_replicates=num_replicates,
        check_jumps=check_jumps,
    )
    own = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    return SleepObjective(**own, data_args=data_args)


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class SleepObjective(Objective):
    """`sleep`, whose runs are the other way round: the model draws, and the guide is scored at what it sees.

    Attributes:
        data_args: see `sleep`.
    """

    data_args: Callable[..., tuple[PyTree, ...]] = dataclasses.field(kw_only=True)

    def traces(
        self, model: ppl.Program, guide: ppl.Program | None, *args: PyTree, **kwargs: PyTree
    ) -> dict[str, ppl.Trace]:
        """One run: the model's trace with its data drawn, and the guide's at its choices."""
        args = joined(args, kwargs)
        drawn, latent, seen = _dreamt(self.name, model, self.data_args, args)
        assert guide is not None
        return {"model": drawn, "guide": ppl.score(guide, latent, *seen)}


def _dreamt(
    name: str,
    model: ppl.Program,
    data_args: Callable[..., PyTree] | None,
    args: PyTree,
) -> tuple[ppl.Trace, dict[str, Array], tuple[PyTree, ...]]:
    """A joint draw of the model: its trace, its latent values, and the guide's arguments."""
    assert data_args is not None
    redraw = _RedrawObserved()
    with redraw:
        drawn = ppl.draw(ppl.detached(model), *args)
    if not redraw.names:
        raise ValueError(
            f"{name}: {model!r} has no observed site, so there is no data to dream up. Observe a site."
        )
    observed = {site: drawn.choices[site] for site in redraw.names}
    latent = {site: x for site, x in drawn.choices.items() if site not in observed}
    return drawn, latent, made_by(f"{name}: data_args", apply(data_args, (observed, *args)))


def _dream(
    name: str,
    model: ppl.Program,
    guide: ppl.Program,
    data_args: Callable[..., PyTree] | None,
    args: PyTree,
) -> Array:
    """Log q_phi(z | x) at a joint draw of the model."""
    drawn, latent, seen = _dreamt(name, model, data_args, args)
    q = ppl.score(guide, latent, *seen)
    check_is_law(drawn, "model of a sleep phase")
    penalties = check_match(drawn, q, ("covers",))
    return q.log_density + sum(jnp.sum(x) for x in penalties.values())


class _RedrawObserved(Messenger):
    """Turn observations into draws."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "sample" and msg["is_observed"] and not _is_factor(msg["fn"]):
            self.names.append(msg["name"])
            msg["value"], msg["is_observed"] = None, False


def _is_factor(fn: Callable[..., PyTree]) -> bool:
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.Unit)


def _averaged(weights: Array, values: Array) -> Array:
    """The mean of values under self-normalised weights, held fixed; what has none counts nothing, be it infinite."""
    shares = stop(jax.nn.softmax(weights, axis=0))
    return jnp.sum(shares * jnp.where(shares == 0, 0.0, values), axis=0)


def _particles(
    model: ppl.Program,
    guide: ppl.Program,
    proposal: object,
    args: tuple[Array, ...],
    num_particles: int,
    per: str,
) -> tuple[Array, Array, Array, Array]:
    """Log-weights (fixed), log q_phi (differentiable), log p (fixed) of K draws from r, [K] or [K, rows]; the rows' scale."""
    source = ppl.detached(guide) if proposal is None else ppl.as_program(proposal)

    def particle() -> tuple[Array, Array, Array, Array]:
        r = ppl.draw(source, *args)
        p = score_at(ppl.detached(model), r, args, supports=("inside", "covers"))
        before = sites_met()
        q = ppl.score(guide, r.choices if proposal is None else r, *args)
        q = with_penalties(q, check_match(p, q, ("covers",)))
        refuse_new_draws("wake phase", before)
        weight, scale = weight_of(p, r, per)
        plate = plate_of(p, r, per)
        return stop(weight), log_density_of(q, plate), stop(log_density_of(p, plate)), scale

    *numbers, scale = ppl.particles(num_particles)(particle)()
    return *numbers, scale[0]
