"""Sequential Monte Carlo: one call for Feynman-Kac models and for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .... import ppl
from ....ppl._checks import check_counts
from ....ppl._compat import is_concrete, typed_key
from ..population import evidence
from ..resampling import (
    Differentiation,
    Look,
    Order,
    Partial,
    Policy,
    Resampling,
    ResamplingGradient,
    Score,
    Transport,
    Twist,
    as_gradient,
    as_resampling,
    equally_weighted,
    ess_below,
    evidence_only,
    once_only,
    scored,
)
from ._descent import Segment
from ._feynman_kac import FeynmanKac, run_chain
from ._filter import run_program
from ._mesh import ONE_DEVICE, Axes, Placement, as_placement
from ._step import Ancestry, History, Settings

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SMCResult:
    """Weighted particles and the record of their run; a pytree.

    Attributes:
        particles: for a program site -> values [particles, ...] of its latent sites (sites in `ppl.scan`: [particles, time,
            ...], the particle's own path; absent without `history="full"`); for a `FeynmanKac` the last state.
        log_weights: normalised, [particles], nats.
        log_evidence: log of the estimate of the normalising constant, nats; its exponential is unbiased if policy and
            proposals do not adapt to the run (deciding by `ess_below` is allowed).
        increments: log-evidence increments, one per weighing (a straight part of the program, or one step of a scan).
        ess: effective sample size after each weighing.
        is_resampled: whether particles were resampled before each weighing.
        ancestors: [weighings, particles] parents (a particle itself where none was resampled), None with `history="none"`.
        step_log_weights: normalised, after each weighing, [weighings, particles]; None with `history="none"`.
        paths: for a `FeynmanKac` with `history="full"`, the particles' paths [particles, steps + 1, ...].
        failed_at: number of the first weighing after which no particle had positive weight, or one was NaN; -1 if there is none.
        offspring: the law of the offspring counts, that of the `Scheme`; "conditional" for a run with `retained`.
    """

    particles: Any
    log_weights: Array
    log_evidence: Array
    increments: Array
    ess: Array
    is_resampled: Array
    ancestors: Array | None
    step_log_weights: Array | None
    paths: Any
    failed_at: Array
    offspring: str = dataclasses.field(default="unknown", metadata={"static": True})

    def mean(self, fn: Callable[[Any], Any]) -> Any:
        """sum_k W_k fn(particle_k)."""
        values = jax.vmap(fn)(self.particles)
        return jax.tree.map(lambda x: jnp.tensordot(jnp.exp(self.log_weights), x, 1), values)

    def sample(self, key: Array, num_samples: int) -> Any:
        """Equally weighted particles, drawn by systematic resampling."""
        return equally_weighted(typed_key(key), self.particles, self.log_weights, num_samples)


def smc(
    target: FeynmanKac | ppl.Program | Callable[..., Any],
    key: Any,
    *args: Any,
    num_particles: int,
    proposal: ppl.Program | Callable[..., Any] | None = None,
    resampling: Resampling = "systematic",
    policy: Policy | None = None,
    history: History = "full",
    batch_size: int | None = None,
    retained: Any = None,
    twist: Twist | None = None,
    order: Order | None = None,
    gradient: str | ResamplingGradient | None = None,
    mesh: jax.sharding.Mesh | None = None,
    mesh_axes: Axes = None,
) -> SMCResult:
    """Run particles through a Feynman-Kac model or a program.

    Between weighings the particles are resampled when `policy` says so, and log Z grows by log sum_k W_k G_k.

    A program becomes a filter without rewriting: its latent sites are drawn from the prior, or from `proposal`, and
    weighted by observations, factors and log p - log q; particles are resampled before and between the steps of each
    top-level `ppl.scan`. Straight code is weighed once. Missing observations (`obs_mask`) contribute nothing.

    Args:
        target: a `FeynmanKac` or a program.
        key: PRNG key of either kind.
        args: the program's arguments.
        num_particles: number of particles K, fixed.
        proposal: program of the same arguments for some or all latent sites; a scan in it is advanced together with the
            model's scan over the same sites. Sites it does not draw come from the prior.
        resampling: "systematic", "stratified", "residual", "multinomial", ..., a `Scheme`, or `partial_resampling`.
        policy: when to resample, `ess_below(0.5)` by default; see `every`, `never`, `window`.
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
            model's own functions). Weights are held by every device; states, paths and genealogy are split.
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
    key = typed_key(key)
    check_sizes("smc", num_particles, history, batch_size, mesh)
    place = as_placement("smc", "particles", num_particles, mesh, mesh_axes, key)

    def run_all(key: Array, retained: Any, *args: Any) -> SMCResult:
        return run(
            target, key, args, num_particles=num_particles, proposal=proposal, resampling=resampling, policy=policy,
            history=history, batch_size=batch_size, retained=retained, twist=twist, order=order,
            gradient=gradient, place=place,
        )[0]  # fmt: skip

    result = place.compiled(run_all)(key, retained, *args)
    check_increments(result.increments, twist is not None)
    return result


def run(
    target: FeynmanKac | ppl.Program | Callable[..., Any],
    key: Any,
    args: tuple[Any, ...],
    *,
    num_particles: int,
    proposal: ppl.Program | Callable[..., Any] | None = None,
    resampling: Resampling = "systematic",
    policy: Policy | None = None,
    history: History = "full",
    batch_size: int | None = None,
    retained: Any = None,
    path: Ancestry = "genealogy",
    twist: Twist | None = None,
    order: Order | None = None,
    gradient: str | ResamplingGradient | None = None,
    place: Placement = ONE_DEVICE,
) -> tuple[SMCResult, list[Segment]]:
    """What `smc` does; with path "filter" also the record for backward sampling, see `run_program`."""
    key = typed_key(key)
    check_sizes("smc", num_particles, history, batch_size, None)
    scheme = as_resampling(resampling)
    strategy = None if gradient is None else as_gradient(gradient)
    policy = policy or (ess_below(0.5) if strategy is None else strategy.default_policy())
    differentiation = None
    if order is not None and retained is not None:
        raise ValueError(
            "smc: with a retained path particle 0 has a law of its own, which sorting would break. Leave out order=."
        )
    if strategy is not None:
        if retained is not None:
            raise ValueError(
                "smc: a run with retained choices has no gradient strategy (its evidence is not unbiased). Leave out gradient=."
            )
        if order is not None:
            raise ValueError(
                "smc: a gradient strategy draws ancestors by itself, in no order. Leave out order= or gradient=."
            )
        if isinstance(scheme, Partial):
            raise ValueError(
                "smc: a gradient strategy draws all ancestors and their weights by itself. Leave out gradient=, or use "
                f"resampling='{scheme.scheme.name}'."
            )
        if twist is not None and isinstance(strategy, Transport):
            raise ValueError(
                "smc: gradient='ot' puts other particles in the place of those whose psi is known. Leave out twist=, or use "
                "gradient='stop_gradient'."
            )
        strategy.check(scheme, policy, num_particles, history)
        differentiation = Differentiation(strategy, scheme)
    settings = Settings(
        num_particles, scheme.ancestors if retained is None else scheme.conditional, policy, history, batch_size, path,
        gradient=differentiation,
        look=None if twist is None and order is None else Look(twist, order),
        place=place,
    )  # fmt: skip
    retained = jax.tree.map(jnp.asarray, retained)
    fields = run_engine("smc", target, proposal, key, args, settings, retained)
    segments, limited, _ = fields.pop("segments", []), fields.pop("limited"), fields.pop("islands")
    scores, is_scored = fields.pop("scores"), fields.pop("is_scored")
    if strategy is not None and not strategy.in_weights:
        fields["increments"] = scored(fields["increments"], scores)
        if is_scored or isinstance(strategy, Score):
            rest = {name: x for name, x in fields.items() if name != "increments"}
            fields |= evidence_only(strategy, rest)
    if strategy is not None:
        fields = once_only(fields)
    check_increments(fields["increments"], twist is not None, limited)
    log_evidence, failed_at = evidence(fields["increments"])
    result = SMCResult(
        **fields,
        log_evidence=log_evidence,
        failed_at=failed_at,
        offspring=scheme.offspring if retained is None else "conditional",
    )
    return result, segments


def check_increments(increments: Array, has_twist: bool, limited: Sequence[str] = ()) -> None:
    """Refuse weights that are NaN: a particle without them would be left out, and the rest be biased.

    `limited`: sites whose proposal has probabilities or ends that are computed, and may lack values of the model's.
    """
    is_bad = jnp.isnan(increments)
    if not is_concrete(is_bad) or not bool(is_bad.any()):
        return
    reasons = [
        "a log-density or log-potential is NaN (return -inf for what is impossible)",
        *["twist is NaN or +inf (return finite logs of psi, e.g. of a density with heavier tails)"] * has_twist,
        *[
            f"the proposal's law of site(s) {sorted(limited)} gives probability 0 to a value, or ends before one, that the "
            "model's law can take (give it a little, also where the data rule it out, or rule it out in the model's own law)"
        ] * bool(limited),
    ]  # fmt: skip
    raise ValueError(
        f"smc: a particle's weight is NaN at weighing {int(jnp.argmax(is_bad))}, and without it evidence and draws would be "
        f"biased. That is so where {', or where '.join(reasons)}."
    )


def run_engine(
    name: str,
    target: Any,
    proposal: Any,
    key: Array,
    args: tuple[Any, ...],
    settings: Settings,
    retained: Any = None,
) -> dict[str, Any]:
    """The fields of a result, by the front end for this kind of target."""
    if not isinstance(target, FeynmanKac):
        guide = None if proposal is None else ppl.as_program(proposal)
        return run_program(ppl.as_program(target), guide, key, args, settings, retained)
    if args or proposal is not None:
        raise ValueError(
            f"{name}: a FeynmanKac takes no program arguments and no proposal; they are part of its kernel. Pass a program "
            "for these."
        )
    return run_chain(target, key, settings, retained)


def check_sizes(name: str, num_particles: Any, history: Any, batch_size: Any, mesh: Any) -> None:
    """Refuse impossible sizes, and batches on a mesh."""
    check_counts(name, num_particles=num_particles)
    if history not in ("none", "ancestors", "full"):
        raise ValueError(f"{name}: history must be 'none', 'ancestors' or 'full', got {history!r}.")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"{name}: batch_size must be None or an integer >= 1, got {batch_size!r}.")
    if batch_size is not None and num_particles % batch_size:
        raise ValueError(
            f"{name}: batch_size {batch_size} does not divide num_particles {num_particles}; all batches have one size."
        )
    if batch_size is not None and mesh is not None:
        raise ValueError(
            f"{name}: batch_size={batch_size} runs particles one batch after the other, and mesh= all at once. Leave out one "
            "of them."
        )
