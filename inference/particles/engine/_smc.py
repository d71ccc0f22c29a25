"""Sequential Monte Carlo: one call for Feynman-Kac models and for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
from jaxtyping import PyTree

from .... import ppl
from ....ppl._calls import checked_call
from ....ppl._compat import typed_key
from ....ppl._types import Key
from ..._made_for import made_for
from ..._meshes import over_auto_axes
from ...inputs import checked
from ..resampling import (
    Order,
    Policy,
    Resampling,
    ResamplingGradient,
    Twist,
)
from ._feynman_kac import FeynmanKac
from ._mesh import Axes, as_placement
from ._result import SMCResult, check_increments, warn_of_degeneracy, warn_of_lost
from ._run import RunOptions, check_path, check_sizes, run
from ._step import History

Array = jax.Array


@over_auto_axes
@checked_call
def smc(
    model: FeynmanKac | ppl.Program | Callable[..., PyTree],
    key: Key,
    *args: PyTree,
    num_particles: int = 1000,
    proposal: ppl.Program | Callable[..., PyTree] | str | None = None,
    resampling: Resampling = "systematic",
    policy: Policy | None = None,
    history: History = "full",
    batch_size: int | None = None,
    retained: PyTree = None,
    twist: Twist | None = None,
    order: Order | None = None,
    gradient: str | ResamplingGradient | None = None,
    mesh: jax.sharding.Mesh | None = None,
    mesh_axes: Axes = None,
    **kwargs: PyTree,
) -> SMCResult:
    """Run particles through a Feynman-Kac model or a program.

    Between weighings the particles are resampled when `policy` says so, and log Z grows by log sum_k W_k G_k.

    A program becomes a filter without rewriting: its latent sites are drawn from the prior, or from `proposal`, and
    weighted by observations, factors and log p - log q; particles are resampled before and between the steps of each
    top-level `ppl.scan`. Straight code is weighed once. Missing observations (`obs_mask`) contribute nothing.

    Args:
        model: a `FeynmanKac` or a program.
        key: PRNG key of either kind.
        args: the program's arguments.
        kwargs: keyword arguments of the program; one with the name of an option here goes by position.
        num_particles: number of particles K, fixed. At 1,000 errors of averages are about 3 % of the posterior's widths, where
            weights are even; `log_evidence_std_error` and `ess` tell what K a run needs.
        proposal: program of the same arguments for some or all latent sites; a scan in it is advanced together with the
            model's scan over the same sites. Sites it does not draw come from the prior. "ekf" or "ukf": normal states given
            the step's observations, see `ppl.kalman_proposal`.
        resampling: "systematic", "stratified", "residual", "multinomial", ..., a `Scheme`, or `partial_resampling`.
        policy: when to resample, `ess_below(0.5)` by default; others are in `inference.particles.resampling`.
        history: "full" keeps the particles' paths, "ancestors" only the genealogy, "none" neither (memory).
        batch_size: particles that take a step at once, a divisor of K; None for all.
        retained: a path that particle 0 keeps (conditional SMC): latent site -> value, for a `FeynmanKac` x_0, ..., x_T
            stacked.
        twist: look-ahead (auxiliary and twisted particle filters): `(state, t, *args) -> log psi_t(state)` in nats, for one
            particle. Ancestors are then drawn, and the policy asked, by W psi instead of W; an offspring of particle A has
            a weight in proportion to 1 / psi_A. The best psi_t is the density of all data to come given the state, up
            to a factor; any positive one will do, and one that is too narrow costs variance. For a program `state` is
            the carry of its only top-level scan with sites after t steps (t = 0: before the first), for a `FeynmanKac`
            x_t. Together with a `proposal` that sees the data to come the variance can vanish.
        order: `(state, t, *args) -> place`, a number or a vector, with `state` and `t` as for `twist`: resampling takes the
            particles in the order of their places, along Hilbert's curve where there are several coordinates. Systematic,
            stratified and SSP resampling then add less error (moves add theirs): offspring are spread over the places as the
            weights are. Costs a sort.
        gradient: how derivatives (of `log_evidence`, by `jax.grad` around this call) pass through resampling and through
            sites without a differentiable sampler; without it they are refused where these depend on parameters.
            "stop_gradient": unbiased for dZ, consistent for d log Z. "score": unbiased for d E[log_evidence]. Biased: "drop",
            "soft", "ot". Or a `ResamplingGradient`; see `StopGradient`, `Score`, `Drop`, `Soft`, `Transport`.
        mesh: devices to split the particles over. The method stays that of one device, resampling among all particles
            included: for one key the numbers are those of a compiled run on one device (float32 rounding may differ inside the
            model's own functions). Weights are held by every device; states, paths and genealogy are split. Axes serve as Auto
            ones, also where they are Explicit, as `jax.make_mesh` makes them.
        mesh_axes: axes of the mesh that split the particles, all of them by default; over others everything is copied.

    Returns:
        An `SMCResult`.

    Raises:
        ValueError: a proposal that does not fit, an unknown scheme, a scan that cannot be stepped; a gradient that the
            scheme, the policy or the history does not allow; a twist or order of a program without or with several scans; a
            twist whose value is NaN or infinite, a log-density that is NaN, a proposal that gives probability 0 to what the
            model can be (under jit the evidence is then NaN); an order of more than 15 coordinates, or
            together with `retained` or `gradient`; a mesh that lacks an axis or whose devices do not divide the particles,
            together with `batch_size`, or with a key that is not of the threefry generator.
        TypeError: a derivative is taken and `gradient` is not chosen, or does not serve the result that is differentiated.

    Warns:
        UserWarning: the final weights have a `k_hat` above 0.7 by more than a standard error, or leave fewer than five effective
            particles of 25 or more and no `k_hat`; or hardly any of the first particles of a model with a memory (see
            `FeynmanKac`) has descendants, `num_ancestors`. Under jit these numbers are fields of the result, without a warning.

    Validity: E[exp(log_evidence)] = Z for every policy that looks at weights only, with an unbiased scheme. Weighted
    averages are consistent in K. Both hold with a twist, at every K, if psi is positive wherever later data are possible
    (log psi = -inf loses the particle); weights, increments and ess are those of the model, not of the twisted one. With
    `retained` the run is the conditional SMC kernel, which leaves the posterior
    invariant; its evidence is not unbiased. Gradients: sites with a differentiable sampler are taken pathwise (ask for
    strategy="reinforce" at a site whose value meets a jump), all others by their score; draws of a `FeynmanKac` are the
    user's own and taken pathwise. Jumps are not searched for here; `fivo` and `vsmc` do.

    Example:
        >>> from lapilli import inference, ppl
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> @ppl.model
        ... def walk(ys):
        ...     def step(x, y):
        ...         x = ppl.sample("x", dist.Normal(0.9 * x, 1.0))
        ...         return x, ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        ...     ppl.scan(step, 0.0, ys)
        >>> ys = jnp.array([0.5, -1.0, 0.25])
        >>> inference.smc(walk, jax.random.key(0), ys, num_particles=100).particles["x"].shape
        (100, 3)

    Reference: Chopin and Papaspiliopoulos 2020, An Introduction to Sequential Monte Carlo; Andrieu, Doucet and
    Holenstein 2010 (conditional SMC); Pitt and Shephard 1999 and Johansen and Doucet 2008 (auxiliary particle filter);
    Whiteley and Lee 2014, arXiv:1210.0220, and Guarniero, Johansen and Lee 2017, arXiv:1511.06286 (twisted); Gerber and
    Chopin 2015, arXiv:1402.4039, and Gerber, Chopin and Whiteley 2019, arXiv:1708.02230 (order).
    """
    origin, args = made_for(model, args, kwargs), checked(smc, model, args, kwargs)
    key = typed_key(key)
    check_sizes("smc", num_particles, batch_size, mesh)
    if retained is not None:
        check_path(model, retained)
    place = as_placement("smc", "particles", num_particles, mesh, mesh_axes, key)

    options = RunOptions(
        num_particles, proposal, resampling, policy, history, batch_size,
        twist=twist, order=order, gradient=gradient, place=place,
    )  # fmt: skip

    def run_all(key: Array, retained: PyTree, *args: PyTree) -> SMCResult:
        return run(model, key, args, options, retained)[0]

    result = place.compiled(run_all)(key, retained, *args)
    check_increments(result.increments, twist is not None)
    warn_of_lost("smc", result.failed_at)
    if retained is None:
        warn_of_degeneracy(result, isinstance(model, FeynmanKac) and model.has_memory)
    return dataclasses.replace(result, made_for=origin)
