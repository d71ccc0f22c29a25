"""Sequential Monte Carlo over the steps of each series, for weights that collapse when a series is long.

A guide of `programs` is the law of the white noise z after one noisy look h_t, of precision r_t, at each step of the paths A z,

    q(z) = p(z) prod_t psi_t(z_1:t) / C,   psi_t = exp(-1/2 sum_d r_td (h_td - (A z_d)_t)^2),   A lower triangular,

so that the weight of a whole draw is a product over steps,

    p(x_o, x_m, s | z) p(z) / q(x_m | z) q(z) = C prod_t G_t,   G_t = p(x_ot, x_mt, s_t | z_1:t) / q(x_mt | z_1:t) psi_t(z_1:t),

if the decoder of step t reads no later step. Particles are therefore drawn step by step, z_t ~ q(z_t | z_1:t-1), which knows
the later looks, and x_mt ~ q(x_mt | z_1:t), which knows of cells that hide themselves; they are weighted by G_t and resampled
when their effective sample size has halved. Early looks have been paid for and later ones are still in the proposal: this is a
twisted particle filter whose twist is the guide's own look-ahead. With the exact posterior as guide all G_t are constants.

Steps are weighed by what the decoder makes of a window of them. At the end each path is weighed in one piece, and the ratio
goes into its weight: a window too short for the decoder, a decoder that reads later steps, or a prior of z that is not white,
costs variance and leaves no bias.

Where particles carry missing cells, these are drawn anew at the end by a few Metropolis-Hastings steps given z.

Particles hold the noise e of the proposal, z = m + S e with S lower triangular. The model's paths L z are linear in it, and
the program is run on a window of steps up to t, with its deterministic site "path" set to them.

Reference: Guarniero, Johansen and Lee 2017, arXiv:1511.06286 (twisted filters); Heng et al. 2020, arXiv:1708.08396.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ... import ppl
from ...inference import FeynmanKac, smc
from ...ppl._checks import check_counts
from ...ppl._precision import full_precision
from ...ppl._types import Key
from .._series import Series
from ._gp import PrecisionNormal, smoothed
from ._refine import set_sites

# Deterministic sites of the model and of the guide that the steps are made from.
OF_MODEL = ("mixing", "path", "step_log_prob", "step_log_draw")
OF_GUIDE = ("looked", "looks", "look_precision")
NUM_REFRESHES = 4


@dataclasses.dataclass(frozen=True)
class OverTime:
    """Draws by particles that are weighed and resampled over time; what `impute(method="smc")` means.

    Args:
        memory: number of earlier steps in the window on which the decoder is run at each step; None for all. What it reads
            (`imputation.memory`) is enough; fewer cost effective sample size, and more cost time.

    Raises:
        ValueError: a negative memory.
    """

    memory: int | None = None

    def __post_init__(self) -> None:
        if self.memory is not None:
            check_counts("OverTime", 0, memory=self.memory)


class SeriesPaths(NamedTuple):
    """Weighted particles of a batch of series, [particles, series, ...].

    Attributes:
        z: white noise, [..., latents, time].
        x: missing cells, [..., time, channels]; None where they do not enter the weights.
        log_weights: whose exponentials have the mean p(x_o, s), an unbiased estimate; nats.
        origins: number of the first step's particle that each descends from.
    """

    z: Array
    x: Array | None
    log_weights: Array
    origins: Array


class _ParticleState(NamedTuple):
    noise: Array  # [latents, time]; zero at steps to come
    x: Array | None
    log_potential: Array
    log_paid: Array  # by the path: its log-potentials, and log q(x_m) of cells that it carries


def paths(
    model: ppl.Program,
    guide: ppl.Program,
    data: Series,
    key: Key,
    num_particles: int,
    memory: int,
    carries_cells: bool,
) -> SeriesPaths:
    """Particles of each series; traceable.

    Args:
        model: of `programs`.
        guide: of `programs`.
        data: series without labels.
        key: PRNG key.
        num_particles: K.
        memory: number of earlier steps in the window of each step.
        carries_cells: particles hold their missing cells, as they must where p(s | x) weighs them.
    """

    def one(key: Array, row: Series, sites: dict[str, Array]) -> SeriesPaths:
        return _one(model, sites, row, key, num_particles, memory, carries_cells)

    rows = jax.tree.map(lambda a: jnp.asarray(a)[:, None], data)
    computed = guide.simulate(key, data).deterministic
    sites = {name: computed[name] for name in OF_GUIDE}
    found = jax.vmap(one)(jax.random.split(key, len(data.valid)), rows, sites)
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), found)


class _Proposal(NamedTuple):
    """The guide's law of one series, z = loc + S e, and what its looks at A z were."""

    law: PrecisionNormal
    spread: Array  # S, [latents, time, time]
    looked: Array  # A
    looks: Array
    precision: Array

    @full_precision
    def z(self, noise: Array) -> Array:
        """White noise [latents, time]; steps before noise that is zero are what they will be."""
        return self.law.loc[0] + jnp.einsum("dts,ds->dt", self.spread, noise)

    @full_precision
    def through(self, matrix: Array) -> tuple[Array, Array]:
        """Paths `matrix` z as location [latents, time] and factor of the noise [latents, time, time]."""
        return self.law.loc[0] @ matrix.T, jnp.einsum("ts,dsr->dtr", matrix, self.spread)

    def log_look(self, t: PyTree, seen: Array) -> Array:
        """Log psi of step t, of all steps if it is `...`, at values of A z."""
        return -0.5 * (self.precision[:, t] * (self.looks[:, t] - seen) ** 2).sum()

    @full_precision
    def log_c(self) -> Array:
        """Log C: with B = R' R = I + A' diag(r) A and the mean m = B^-1 A' diag(r) h, 1/2 (|R m|^2 - log |B| - h' diag(r) h)."""
        root = self.law.root
        log_det = 2 * jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)).sum()
        mean = jnp.einsum("...ts,...s->...t", root, self.law.loc)
        return 0.5 * ((mean**2).sum() - log_det - (self.precision * self.looks**2).sum())


def _one(
    model: ppl.Program,
    sites: dict[str, Array],
    data: Series,
    key: Array,
    size: int,
    memory: int,
    carries_cells: bool,
) -> SeriesPaths:
    smc_key, key = jax.random.split(key)
    looked, looks, precision = (sites[name] for name in OF_GUIDE)
    law = smoothed(looked[None], looks[None], precision[None])
    proposal = _Proposal(law, law.scale_tril[0], looked, looks, precision)
    chain = _steps(model, proposal, data, key, memory, carries_cells)
    found = smc(chain, smc_key, num_particles=size, history="ancestors")
    origins, _ = jax.lax.scan(
        lambda index, parents: (parents[index], None),
        jnp.arange(size),
        found.ancestors,
        reverse=True,
    )
    last = found.particles
    z = jax.vmap(proposal.z)(last.noise)
    whole, log_r = jax.vmap(lambda z, x: _in_one_piece(model, proposal, data, key, z, x))(z, last.x)
    log_mean = found.log_evidence + proposal.log_c()
    log_weights = found.log_weights + jnp.log(size) + log_mean + whole - last.log_paid
    if last.x is None:
        return SeriesPaths(z, None, log_weights, origins)
    keys = jax.random.split(jax.random.fold_in(key, 1), size)
    x = jax.vmap(lambda *state: _refreshed(model, data, *state))(keys, z, last.x, log_r)
    return SeriesPaths(z, x, log_weights, origins)


def _steps(
    model: ppl.Program,
    proposal: _Proposal,
    data: Series,
    key: Array,
    memory: int,
    carries_cells: bool,
) -> FeynmanKac:
    """Draws and potentials of the steps of one series."""
    shape = proposal.looks.shape
    start, _ = model.generate(key, {"z": jnp.zeros((1, *shape))}, data)
    width = min(memory + 1, shape[1])
    path = proposal.through(start.deterministic["mixing"][0])
    early, early_path = _behind(width - 1, data), _behind(width - 1, path)
    seen_loc, seen_noise = proposal.through(proposal.looked)

    def advanced(key: Array, state: _ParticleState, t: Array) -> _ParticleState:
        noise_key, x_key = jax.random.split(key)
        noise = state.noise.at[:, t].set(jax.random.normal(noise_key, shape[:1]))
        # Steps t - width + 1, ..., t; those before the first do not exist.
        cut = lambda a: jax.lax.dynamic_slice_in_dim(a, t, width, 1)
        window, (loc, factor) = jax.tree.map(cut, (early, early_path))
        with full_precision():
            steps = (loc + jnp.einsum("dws,ds->dw", factor, noise)).T[None]
        along = set_sites(model, {"path": steps})
        trace, _ = along.generate(x_key, {"z": jnp.zeros((1, shape[0], width))}, window)
        here = {n: trace.deterministic[n][0, -1] for n in ("x", "step_log_prob", "step_log_draw")}
        seen = seen_loc[:, t] + (seen_noise[:, t] * noise).sum(-1)
        log_g = here["step_log_prob"] - proposal.log_look(t, seen)
        if state.x is None:
            return _ParticleState(noise, None, log_g, state.log_paid + log_g)
        paid = state.log_paid + log_g + here["step_log_draw"]
        return _ParticleState(noise, state.x.at[t].set(here["x"]), log_g, paid)

    cells = jnp.zeros(data.values.shape[1:]) if carries_cells else None
    empty = _ParticleState(jnp.zeros(shape), cells, jnp.zeros(()), jnp.zeros(()))
    return FeynmanKac(
        init=lambda key: advanced(key, empty, jnp.zeros((), jnp.int32)),
        kernel=advanced,
        log_potential=lambda _, state, t: state.log_potential,
        num_steps=shape[1] - 1,
    )


def _in_one_piece(
    model: ppl.Program, proposal: _Proposal, data: Series, key: Array, z: Array, x: Array | None
) -> tuple[Array, Array]:
    """Log-weight of a path, without C, with log p(x_m | z) where it carries its cells; and log r, its `_ratio`."""
    drawn = {} if x is None else {"x_unobserved": x[None]}
    trace, _ = model.generate(key, {"z": z[None], **drawn}, data)
    log_r, log_q = _ratio(trace)
    log_prior = -0.5 * (z**2 + jnp.log(2 * jnp.pi)).sum()
    log_p = log_r + log_q if drawn else log_r
    with full_precision():
        seen = z @ proposal.looked.T
    return log_p - log_prior - proposal.log_look(..., seen), log_r


def _refreshed(
    model: ppl.Program, data: Series, key: Array, z: Array, x: Array, log_r: Array
) -> Array:
    """The missing cells drawn anew given z: particles that share their early steps need not share the cells there.

    Independent Metropolis-Hastings steps, x' ~ q(x_m | z) accepted with probability min(1, r(x') / r(x)), r = p(x_o, x_m, s, z) /
    q(x_m | z), which leave the law of x_m given z and all that is observed as it is. Where q is near that law most are accepted.
    """

    def step(state: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], None]:
        draw_key, accept_key = jax.random.split(key)
        trace, _ = model.generate(draw_key, {"z": z[None]}, data)
        other = trace.choices["x_unobserved"][0], _ratio(trace)[0]
        accepted = jnp.log(jax.random.uniform(accept_key)) < other[1] - state[1]
        return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), other, state), None

    return jax.lax.scan(step, (x, log_r), jax.random.split(key, NUM_REFRESHES))[0][0]


def _ratio(trace: ppl.Trace) -> tuple[Array, Array]:
    """Log-probs of all sites but the missing cells, log r, and of these, log q(x_m | z)."""
    parts = [jnp.zeros(()), jnp.zeros(())]
    for name, log_prob in trace.log_probs.items():
        parts[trace.sites[name].is_imputed] += log_prob.sum()
    return parts[0], parts[1]


def _behind(num: int, arrays: object) -> Any:
    """Arrays of one series, time on axis 1, behind `num` more steps, which are zeros: they do not exist."""
    pad = lambda a: jnp.pad(a, [(num, 0) if i == 1 else (0, 0) for i in range(a.ndim)])
    return jax.tree.map(pad, arrays)
