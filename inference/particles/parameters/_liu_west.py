"""Parameters and states in one filter: a kernel density of the parameters, shrunk towards its mean. Biased.

Specification. Particles carry unconstrained parameters u beside the state of a scan. Where they are resampled, with the mean m
and the covariance V of u under the weights before,

    u_j <- a u_{A_j} + (1 - a) m + sqrt(1 - a^2) V^{1/2} eps_j,     a = (3 delta - 1) / (2 delta),

which keeps m and V (in expectation) and lets no parameter die out. What the step of the scan takes from the parameters is
computed again from the new ones.

Why it is biased: the cloud of parameters is replaced by a smooth one of the same mean and covariance, whatever its shape, and u_j
no longer belongs to the states that particle j has passed. The bias does not vanish with the number of particles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .... import ppl
from ....ppl._calls import checked_call
from ....ppl._checks import check_counts
from ....ppl._compat import Literal, typed_key
from ....ppl._precision import full_precision
from ....ppl._show import shown
from ....ppl._types import Key
from ..._depends import depends, walk
from ..._made_for import MadeFor, drops_origin, made_for
from ...inputs import check_noise, checked
from ..engine import Cloud, Moved, Settings, warn_of_lost
from ..moves import cholesky
from ..population import Batch, evidence, voided, weighted_mean
from ..programs import (
    PARTICLE,
    STREAM,
    Loop,
    Machine,
    SiteDraws,
    TracedProgram,
    signed_outputs,
    weighs_after,
)
from ..resampling import Policy, Resampled, Scheme, as_scheme, equally_weighted, every
from ._parameters import make_parameters

Array = jax.Array


@shown
@drops_origin
@dataclasses.dataclass(frozen=True)
class LiuWestResult:
    """Weighted parameters after the last observation, and what was known after each; a pytree.

    Attributes:
        parameters: parameter site -> values, [particles, ...].
        log_weights: normalised, [particles], nats.
        log_evidence: estimate of log p(data), nats; **biased**.
        increments: its increments, one per weighing.
        ess: effective number of particles after each weighing.
        is_resampled: whether particles were resampled, and their parameters moved, before each weighing.
        means: latent site -> weighted mean after each step of the scan, [steps, ...]; parameters too, for which it is the
            estimate given the data so far.
        stds: the same of standard deviations.
        failed_at: number of the first weighing after which no particle had positive weight, -1 if there is none.
        evidence: "biased".
        made_for: the arguments that it ran with; None where the result comes out of compiled code.
    """

    parameters: dict[str, Array]
    log_weights: Array
    log_evidence: Array
    increments: Array
    ess: Array
    is_resampled: Array
    means: dict[str, Array]
    stds: dict[str, Array]
    failed_at: Array
    evidence: str = dataclasses.field(default="biased", metadata={"static": True})
    made_for: MadeFor | None = dataclasses.field(default=None, repr=False)

    def mean(self, fn: Callable[[PyTree], PyTree]) -> Any:
        """sum_k W_k fn(parameters_k); NaN where all particles were lost."""
        found = weighted_mean(self.log_weights, jax.vmap(fn)(self.parameters))
        return voided(found, self.failed_at >= 0)

    def sample(self, key: Key | None, num_samples: int) -> dict[str, Array]:
        """Equally weighted parameters, drawn by systematic resampling; void where all particles were lost."""
        kept = self.parameters, self.log_weights, self.failed_at
        return equally_weighted(typed_key(key), *kept, num_samples)


@checked_call
def liu_west(
    model: ppl.Program | Callable[..., PyTree],
    key: Key,
    *args: PyTree,
    parameters: Sequence[str],
    num_particles: int,
    discount: float = 0.98,
    resampling: str | Scheme = "systematic",
    policy: Policy | None = None,
    **kwargs: PyTree,
) -> LiuWestResult:
    """Learn parameters and states of a program together, in one pass over its scan. **Biased**; `smc2` and `pmmh` are not.

    A filter on states and parameters, whose parameters are drawn anew from a shrunk kernel density of themselves wherever
    particles are resampled: u_j <- a u + (1 - a) m + sqrt(1 - a^2) V^(1/2) eps, a = (3 delta - 1) / (2 delta), in unconstrained
    coordinates u with their mean m and covariance V.

    Args:
        model: a program with one top-level scan.
        key: PRNG key of either kind.
        args: the model's arguments.
        kwargs: keyword arguments of the program; one with the name of an option here goes by position.
        parameters: latent sites, continuous, drawn before the scan, as for `pmmh`.
        num_particles: K.
        discount: delta in (1/3, 1); near 1 the kernel is narrow, 0.95 to 0.99 are usual.
        resampling: as for `smc`, offspring of equal weight.
        policy: when particles are resampled and parameters moved; before every step by default.

    Returns:
        A `LiuWestResult`, labelled "biased".

    Raises:
        ValueError: see `pmmh`; a discount outside of (1/3, 1); no top-level scan, or several; observations after the scan; values
            drawn before the scan that mix with parameters in what the step takes; a parameter that the carry holds.

    Validity: **biased**, and not consistent in K: the posterior of the parameters is replaced again and again by a smooth one of
    the same mean and covariance, and paired with states that other parameters made. Exact only where u is normal given the
    data and does not depend on the states. Where the answer counts, use `smc2`, `pmmh` or `particle_gibbs`.

    Example:
        >>> from lapilli import inference, ppl
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> @ppl.model
        ... def walk(ys):
        ...     s = ppl.sample("s", dist.HalfNormal(1.0))
        ...     def step(x, y):
        ...         x = ppl.sample("x", dist.Normal(x, s))
        ...         return x, ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        ...     ppl.scan(step, 0.0, ys)
        >>> result = inference.particles.liu_west(walk, jax.random.key(0), jnp.ones(5), parameters=["s"], num_particles=100)
        >>> result.evidence, result.means["s"].shape, result.means["x"].shape
        ('biased', (5,), (5,))

    Reference: Liu and West 2001, Combined parameter and state estimation in simulation-based filtering, section 10.3 (there with
    a look-ahead at the next observation, which is left out here).
    """
    origin, args = made_for(model, args, kwargs), checked(liu_west, model, args, kwargs)
    check_counts("liu_west", num_particles=num_particles)
    if not 1 / 3 < discount < 1:
        raise ValueError(f"liu_west: discount must lie in (1/3, 1), got {discount}.")
    key, model = typed_key(key), ppl.as_program(model)
    space = make_parameters("liu_west", model, args, parameters)
    template = jax.eval_shape(space.values, jax.ShapeDtypeStruct((space.dimension,), jnp.float32))

    def simulate(key: Array, values: dict[str, Array]) -> ppl.Trace:
        return ppl.condition(model, values).propose(key, {}, None, *args, draw=SiteDraws(None))

    traced = TracedProgram(
        simulate, (key, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), template))
    )
    first = [i == 0 for i in range(len(traced.closed.jaxpr.invars))]  # the key
    check_noise("liu_west", model, args, traced.closed, first)
    traced.signs = {
        name: 1.0
        for name, info in traced.shapes.sites.items()
        if name in traced.shapes.log_probs and info.kind != "latent" and name not in template
    }
    number = _only_loop(traced)
    draw_key, particle_key, loop_key = jax.random.split(key, 3)
    settings = Settings(num_particles, as_scheme(resampling).ancestors, policy or every())
    shrink = (3 * discount - 1) / (2 * discount)

    def start(points: Array, keep: set[Any]) -> Machine:
        """The straight code up to the scan, each particle with its own parameters."""
        leaves = jax.tree.leaves(jax.vmap(space.values)(points))
        kinds = [STREAM, *[PARTICLE] * len(leaves)]
        machine = Machine.start(traced.closed, [particle_key, *leaves], kinds, num_particles)
        machine.keep = keep
        machine.run_to(number)
        return machine

    points = jax.vmap(space.draw)(jax.random.split(draw_key, num_particles))
    machine = start(points, set())
    loop = Loop(machine, traced.closed.jaxpr.eqns[number], {})
    fresh = _from_parameters(traced, loop, number)
    terms, latent = signed_outputs(traced, loop), _latent_outputs(traced, loop)
    shared = loop.shared_xs()

    def renewed(state: dict[str, Any], points: Array) -> dict[str, PyTree]:
        values = start(points, set()).values
        consts = {i: values.value(loop.consts[i]) for i in fresh["consts"]}
        xs = {i: values.value(loop.xs[i]) for i in fresh["xs"]}
        return {**state, "consts": {**state["consts"], **consts}, "xs": {**state["xs"], **xs}}

    def step(cloud: Cloud, inputs: PyTree) -> tuple[Cloud, PyTree]:
        t, shared = inputs
        resample_key, noise_key = jax.random.split(jax.random.fold_in(loop_key, t))
        points = cloud.particles[1]
        mean = weighted_mean(cloud.log_weights, points)
        centred = points - mean
        with full_precision():
            spread = cholesky((jnp.exp(cloud.log_weights)[:, None] * centred).T @ centred)

        def move(chosen: Resampled) -> Moved:
            state, points = chosen.particles
            noise = jax.random.normal(noise_key, points.shape)
            with full_precision():
                noise = noise @ spread.T
            moved = shrink * points + (1 - shrink) * mean + (1 - shrink**2) ** 0.5 * noise
            points = jnp.where(chosen.is_resampled, moved, points)
            batch = Batch(num_particles, None)
            state, outs = loop.step(renewed(state, points), shared, t, {}, batch)
            summed = (outs[i].reshape(num_particles, -1).sum(1) for i in terms)
            log_potentials = jnp.broadcast_to(sum(summed, jnp.zeros(())), (num_particles,))
            values = jax.vmap(space.values)(points) | {name: outs[i] for name, i in latent.items()}
            return Moved((state, points), log_potentials, kept=values)

        cloud, (record, values, _) = settings.step(t, resample_key, cloud, move)
        means = weighted_mean(cloud.log_weights, values)
        squares = weighted_mean(
            cloud.log_weights, jax.tree.map(lambda x, m: (x - m) ** 2, values, means)
        )
        return cloud, (record, {"means": means, "stds": jax.tree.map(jnp.sqrt, squares)})

    steps = jnp.arange(loop.length, dtype=jnp.int32)
    cloud, first = settings.weigh(
        settings.start((loop.initial() | {"after": []}, points)), _straight(traced, machine, num_particles)
    )  # fmt: skip
    cloud, (record, moments) = jax.lax.scan(step, cloud, (steps, shared))
    values = jax.vmap(space.values)(cloud.particles[1])
    fields = settings.fields(cloud, values, [first, record])
    log_evidence, failed_at = evidence(fields["increments"])
    warn_of_lost("liu_west", failed_at)
    kept = {name: fields[name] for name in ("log_weights", "increments", "ess", "is_resampled")}
    # Moments from the step on that lost all particles; the weighing before the first step is number 0.
    is_after = (failed_at >= 0) & (steps + 1 >= failed_at)
    void = lambda x: jnp.where(is_after.reshape(-1, *[1] * (x.ndim - 1)), jnp.nan, x)
    moments = jax.tree.map(void, moments)
    return LiuWestResult(
        values, log_evidence=log_evidence, failed_at=failed_at, made_for=origin, **kept, **moments
    )


def _straight(traced: TracedProgram, machine: Machine, num_particles: int) -> Array:
    """The log-weight of what is observed before the scan."""
    total = jnp.zeros(num_particles)
    for atom, sign in traced.weighted():
        if isinstance(atom, Literal) or atom in machine.values.env:
            x = machine.values.per_particle(atom)
            total = total + sign * x.reshape(num_particles, -1).sum(1)
    return total


def _latent_outputs(traced: TracedProgram, loop: Loop) -> dict[str, int]:
    """Latent sites of the scan -> output of its step; numbers only, which have a mean."""
    return {
        name: loop.ys_out.index(v)
        for name, v in traced.trace.choices.items()
        if v in loop.ys_out and jnp.issubdtype(traced.shapes.choices[name].dtype, jnp.floating)
    }


def _only_loop(traced: TracedProgram) -> int:
    loops = traced.loops()
    if len(loops) != 1:
        raise ValueError(
            f"liu_west: the program has {len(loops)} top-level scans with observations, and parameters are moved between the "
            "steps of one. Write it with one ppl.scan."
        )
    if weighs_after(traced, loops[0]):
        raise ValueError(
            "liu_west: the program has observations after its scan, which would see parameters from before the last moves. "
            "Observe in the scan."
        )
    return loops[0]


def _from_parameters(traced: TracedProgram, loop: Loop, number: int) -> dict[str, list[int]]:
    """Constants and inputs of the scan that are functions of the parameters, to be computed again when these move.

    Raises:
        ValueError: one depends on other draws, too; the carry holds a function of the parameters that no step changes.
    """
    jaxpr = traced.closed.jaxpr
    eqns = jaxpr.eqns[:number]
    of_key = walk(eqns, {v: i == 0 for i, v in enumerate(jaxpr.invars)})
    of_point = walk(eqns, {v: i > 0 for i, v in enumerate(jaxpr.invars)})
    is_of = lambda marks, v: not isinstance(v, Literal) and marks.get(v, False)
    found = {
        part: [i for i, v in enumerate(variables) if is_of(of_point, v)]
        for part, variables in (("consts", loop.consts), ("xs", loop.xs))
    }
    for part, variables in (("consts", loop.consts), ("xs", loop.xs)):
        if any(is_of(of_key, variables[i]) for i in found[part]):
            raise ValueError(
                "liu_west: the steps of the scan take values that depend on parameters and on other draws from before the scan; "
                "when parameters move these would stay behind. Draw them in the scan, or hand them on in its carry."
            )
    others = [True] * len(loop.body.jaxpr.invars)
    first = len(loop.consts)
    others[:first] = [loop.machine.values.kind(v) == STREAM for v in loop.consts]
    for i, v in enumerate(loop.init):
        if is_of(of_point, v) and not is_of(of_key, v):
            marks = [m and j != first + i for j, m in enumerate(others)]
            if not depends(loop.body.jaxpr, marks)[i]:
                raise ValueError(
                    f"liu_west: number {i} of the scan's carry is a function of the parameters that no draw or input changes, "
                    "and would keep their old values. Use the parameters in the step directly."
                )
    return found
