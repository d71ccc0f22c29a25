"""Gradients of bounds without scores: sticking the landing, doubly reparameterised, and the latter for priors too.

Terms: z = g(noise, phi) a draw of the guide q_phi, w = p_theta(x, z) / q_phi(z), sg(.) = stop_gradient.
All use that E[d/dphi log q_phi(z)] = 0 at a fixed draw z, for a support that does not move. Values are those of the bounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import ArrayLike, PyTree
from numpyro.primitives import Messenger

from ... import ppl
from ...ppl._compat import is_concrete
from ...ppl._precision import full_precision
from ...ppl._types import Message
from ...ppl.densities import log_mean_exp
from ...ppl.distributions import Support, same_support, support_of_law
from ...ppl.strategies import element
from ...ppl.traces import strategies_met
from ._detached import CommonNoise, refuse_estimated, refuse_new_draws, sites_met
from ._row_weights import log_density_of, over_imputations, plate_of, weight_of

Array = jax.Array
stop = jax.lax.stop_gradient
LOCATION_SCALE = (dist.Normal, dist.Laplace, dist.Logistic, dist.Cauchy, dist.Gumbel)
SCALE = (dist.HalfNormal, dist.HalfCauchy)


def sticking_the_landing(model: ppl.Program, guide: ppl.Program, *args: PyTree) -> Array:
    """Log p(x, z) - log q_sg(phi)(z): what is left out has mean zero under every strategy."""
    refuse_estimated("elbo(gradient='stl')", guide, "so no density at a fixed draw can be detached")
    with _FixedSupport("elbo(gradient='stl')"):
        q = ppl.draw(guide, *args)
    log_q = ppl.score(ppl.detached(guide), q.choices, *args).log_density
    return ppl.score(model, q, *args).log_density - log_q


def doubly_reparameterized(
    model: ppl.Program,
    guide: ppl.Program,
    args: tuple[ArrayLike, ...],
    num_particles: int,
    per: str,
    num_imputations: int = 1,
) -> Array:
    """The importance-weighted bound whose gradient is DReG.

    In phi: sum_k wn_k^2 (d log w_k / d z_k)(d z_k / d phi); in theta: sum_k wn_k d/dtheta log p_theta(x, z_k); wn the
    normalised weights. Missing cells that the model draws are functions of z, theta and noise that moves with neither, so that
    log w_k, with them, is a function of z and theta as before.
    """
    name = "iwelbo(gradient='dreg')"
    refuse_estimated(name, guide, "so no density at a fixed draw can be detached")

    def particle() -> tuple[Array, Array, Array]:
        with _FixedSupport(name):
            q = ppl.draw(guide, *args)
        _refuse_sampled(name)
        drawn = sites_met()
        log_q = ppl.score(ppl.detached(guide), q.choices, *args)
        refuse_new_draws(name, drawn)

        def log_weight() -> tuple[Array, Array, Array]:
            before, noise = sites_met(), CommonNoise(name, q.choices)
            with noise:
                path, scale = weight_of(ppl.score(ppl.detached(model), q, *args), log_q, per)
                fixed = ppl.score(model, jax.tree.map(stop, q), *args)
            theta, _ = weight_of(fixed, jax.tree.map(stop, log_q), per)
            refuse_new_draws(name, before, noise.names)
            _refuse_sampled(name)
            return path, theta, scale

        return over_imputations(log_weight, num_imputations)

    path, theta, scale = ppl.particles(num_particles)(particle)()
    weights = stop(jax.nn.softmax(path, axis=0))
    moved = weights**2 * (path - stop(path)) + weights * (theta - stop(theta))
    return jnp.sum(scale[0] * (stop(log_mean_exp(path)) + moved.sum(0)))


def generalized_doubly_reparameterized(
    model: ppl.Program, guide: ppl.Program, args: PyTree, num_particles: int, per: str
) -> Array:
    """The importance-weighted bound whose gradient is GDReG: DReG in phi, and no score of the prior in theta.

    Let S be the model's latent sites whose prior carries its draws along (`transported`), z^ = z + dz the draw so moved by theta
    at fixed noise, from one site of S to the next. For h = wn q / p_S, integrating h d p_S by parts gives

        E[wn_k d/dtheta log p_S(z_k)] = E[(wn_k d log p_rest / dz - wn_k^2 d log w_k / dz) dz_k],

    where p = p_S p_rest: p_rest holds the observations and the other sites, whose own score stays.
    """
    name = "iwelbo(gradient='gdreg')"
    for program in (guide, model):
        refuse_estimated(name, program, "so no density at a fixed draw can be detached")

    def particle() -> tuple[Array, Array, Array]:
        met = _GuideSupports(name)
        with _FixedSupport(name), met:
            q = ppl.draw(guide, *args)
        _refuse_sampled(name)
        before = sites_met()
        carry = _MovingPrior(met.supports)
        moved = ppl.score(_within(carry, model), jax.tree.map(stop, q), *args)
        if not carry.moved:
            raise ValueError(
                f"{name}: no latent site of the model has a prior that carries its draws along (the sites are "
                f"{sorted(moved.choices)}): a known location-scale family, Exponential, Gamma, MultivariateNormal or a transform "
                "of one, with the support that the guide has there. Use gradient='dreg'."
            )
        # Against the move, since the sum over particles takes DReG's phi and the last term above with one sign.
        own = {
            site: q.choices[site] - (moved.deterministic[label] - stop(moved.deterministic[label]))
            for label, site in carry.moved.items()
        }
        along = dataclasses.replace(q, choices={**q.choices, **own})
        log_q = ppl.score(ppl.detached(guide), along.choices, *args)
        p = ppl.score(ppl.detached(model), along, *args)
        path, scale = weight_of(p, log_q, per)
        rest = {site: x for site, x in moved.log_probs.items() if site not in own}
        rest = log_density_of(dataclasses.replace(moved, log_probs=rest), plate_of(p, log_q, per))
        refuse_new_draws(name, before)
        return path, rest, scale

    path, rest, scale = ppl.particles(num_particles)(particle)()
    weights = stop(jax.nn.softmax(path, axis=0))
    moved = weights**2 * (path - stop(path)) + weights * (rest - stop(rest))
    return jnp.sum(scale[0] * (stop(log_mean_exp(path)) + moved.sum(0)))


def _refuse_sampled(name: str) -> None:
    sampled = {s: t.name for s, t in strategies_met().items() if not t.is_pathwise}
    if sampled:
        raise ValueError(
            f"{name}: the site(s) {sorted(sampled)} have the strategies {sampled}, but the doubly "
            "reparameterised gradient passes through the values of all sites. Use 'reparam' where the "
            "distribution has it, else gradient='full' or inference.vimco."
        )


class _FixedSupport(Messenger):
    """Refuse sites whose support may move with the parameters: the score at a fixed draw then has a mean."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def process_message(self, msg: Message) -> None:
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        support, law = support_of_law(msg["fn"]), type(element(msg["fn"])[0]).__name__
        if support.unknown or not is_concrete(support.edges):
            how = "cannot be known: " + support.unknown if support.unknown else "is computed"
            raise ValueError(
                f"Site '{msg['name']}': {self.name} leaves out the score of the guide, whose mean is zero "
                f"for a fixed support only, and the support of {law} {how}. "
                "Give it constant bounds (Python numbers), or use gradient='full'."
            )


class _GuideSupports(Messenger):
    """The supports of a guide's sites; refuses point masses, whose density has no derivative in their value."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.supports: dict[str, Support] = {}

    def process_message(self, msg: Message) -> None:
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        base = element(msg["fn"])[0]
        if isinstance(base, dist.Delta):
            raise ValueError(
                f"Site '{msg['name']}': {self.name} differentiates the density of the guide in the site's value, but the guide "
                "has a point mass there (as some autoguides have). Draw the site from a density, or use gradient='dreg'."
            )
        self.supports[msg["name"]] = support_of_law(base)


class _MovingPrior(Messenger):
    """Let what lies downstream of a model's latent site see its value move with the prior's parameters.

    The value is left in the trace as a deterministic site. The site's own log-prob is taken before, at the value that stays.
    """

    def __init__(self, supports: dict[str, Support]) -> None:
        super().__init__()
        self.supports = supports
        self.moved: dict[str, str] = {}  # deterministic site -> site

    def postprocess_message(self, msg: Message) -> None:
        name = msg["name"]
        if msg["type"] != "sample" or msg["is_observed"] or name not in self.supports:
            return
        # Otherwise the guide's density jumps within the prior's support, and parts do not integrate.
        if not same_support(support_of_law(msg["fn"]), self.supports[name]):
            return
        moved = transported(msg["fn"], msg["value"])
        if moved is None:
            return
        msg["value"] = msg["value"] + (moved - stop(moved))
        self.moved[f"{name}!moved"] = name
        numpyro.deterministic(f"{name}!moved", msg["value"])


def _within(handler: Messenger, program: ppl.Program) -> ppl.Program:
    """The program run under the handler, inside of any recorder."""

    def run(*args: PyTree, **kwargs: PyTree) -> PyTree:
        with handler:
            return program.fn(*args, **kwargs)

    return ppl.Program(run, program.params)


# Draws carried along by their law.


@full_precision
def transported(fn: dist.Distribution, value: Array) -> Array | None:
    """T(noise; parameters) with noise = T^-1(value) fixed: equal to `value`, with the derivative in the parameters of `fn`.

    The value may come from anywhere in the support, not only from `fn`. None where no T is known here, and for masked
    distributions, whose masked elements have no density to follow.
    """
    if _has_mask(fn):
        return None
    base: Any = element(fn)[0]
    value = stop(value)
    if isinstance(base, dist.TransformedDistribution):
        return _through_transforms(base, value)
    if type(base) in LOCATION_SCALE:
        return base.loc + base.scale * stop((value - base.loc) / base.scale)
    if type(base) in SCALE:
        return base.scale * stop(value / base.scale)
    if type(base) is dist.Exponential:
        return stop(value * base.rate) / base.rate
    if isinstance(base, dist.Gamma):
        return _gamma(base, value)
    if type(base) is dist.MultivariateNormal:
        noise = jnp.linalg.solve(stop(base.scale_tril), (value - stop(base.loc))[..., None])
        return base.loc + (base.scale_tril @ noise)[..., 0]
    return None


def _through_transforms(fn: Callable[..., PyTree], value: Array) -> Array | None:
    inner = value
    for transform in reversed(fn.transforms):
        inner = stop(transform.inv(inner))
    moved = transported(fn.base_dist, inner)
    if moved is None:
        return None
    for transform in fn.transforms:
        moved = transform(moved)
    return moved


def _gamma(fn: Callable[..., PyTree], value: PyTree) -> Array:
    """Along the distribution function: dx/da = -(dF/da) / p(x) at rate 1."""
    standard = stop(value * fn.rate)
    concentration = jnp.broadcast_to(fn.concentration, jnp.shape(standard))
    slope = jax.lax.random_gamma_grad(stop(concentration), standard)  # pyright: ignore[reportCallIssue]
    return (standard + slope * (concentration - stop(concentration))) / fn.rate


def _has_mask(fn: dist.Distribution) -> bool:
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            return True
        fn = fn.base_dist
    return False
