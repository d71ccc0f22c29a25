"""Continuous GFlowNets: samplers of an unnormalised density that learn the drift of a diffusion.

Weights of finite variance. A step of the policy has the mean x + m, m = f dt, and the standard deviation r s in a coordinate, the
reference's has x and s = sigma sqrt(dt), and the weight of a path is h(x_1) times the product of the steps' ratios. Of one ratio

    E_policy[ratio^2 | x] = int N(y; x, s^2)^2 / N(y; x + m, r^2 s^2) dy,

where the integrand is exp of -(1 - 1 / (2 r^2)) y^2 / s^2 + O(y): the integral is finite if and only if

    r > 1 / sqrt(2),        and then it is  r^2 / sqrt(2 r^2 - 1) exp(m^2 / (s^2 (2 r^2 - 1))).

Where r stays above a least value r_0 > 1 / sqrt(2), and |f| below a largest one, each factor is bounded whatever x is, and so is
the product over steps and coordinates: with a bounded h the second moment of the weight is finite. With h = 1, m = 0 and a
constant r it is (r^2 / sqrt(2 r^2 - 1))^(T d) exactly, and infinite for r <= 1 / sqrt(2): for such h the bound cannot be lowered.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from ... import inference, ppl
from ...inference.objectives._detached import CONSTANT
from ...ppl._checks import check_counts, log_number
from ...ppl._compat import is_concrete
from ...ppl._types import ParamMap
from ._losses import Loss
from ._process import Process

Flow = Literal["total", "network"]
LEAST_SCALE = 0.5**0.5  # of a step relative to the reference's, for weights of finite variance
stop = jax.lax.stop_gradient


class Control(eqx.Module):
    """The policy's network: a perceptron of (x, t), and a gain of the target's score; both zero before training.

    Returns the drift and the log of the step's standard deviation relative to the reference's, [2 d]. The score enters with its
    norm cut at `max_score`, and the relative scale lies between `min_relative_scale` and e: single steps cannot leave this world,
    nor be so narrow that weights have no variance.
    """

    body: eqx.nn.MLP
    gain: eqx.nn.MLP
    max_score: float = eqx.field(static=True)
    min_relative_scale: float = eqx.field(static=True)

    def __init__(
        self,
        num_dims: int,
        *,
        width: int = 64,
        depth: int = 2,
        max_score: float = 10.0,
        min_relative_scale: float = 0.75,
        key: Array,
    ) -> None:
        keys = jax.random.split(key)
        body = eqx.nn.MLP(num_dims + 1, 2 * num_dims, width, depth, jax.nn.gelu, key=keys[0])
        gain = eqx.nn.MLP(1, 1, width, 1, jax.nn.gelu, key=keys[1])
        zero = lambda mlp: eqx.tree_at(
            lambda m: (m.layers[-1].weight, m.layers[-1].bias), mlp, replace_fn=jnp.zeros_like
        )
        self.body, self.gain, self.max_score = zero(body), zero(gain), max_score
        self.min_relative_scale = min_relative_scale

    def __call__(
        self, x: Float[Array, " dims"], t: Float[Array, ""], score: Float[Array, " dims"]
    ) -> Float[Array, " two_dims"]:
        """Drift and log relative scale at x and time t."""
        drift, log_scale = jnp.split(self.body(jnp.append(x, t)), 2)
        norm = jnp.sqrt((score**2).sum() + 1e-12)
        score = score * jnp.minimum(1.0, self.max_score / norm)
        # Slope 1 at 0 on both sides; the lower end is log min_relative_scale.
        low = -math.log(self.min_relative_scale)
        # At 1 nothing is below, and 0 / 0 would be NaN.
        below = low * jnp.tanh(jnp.minimum(log_scale, 0.0) / low) if low > 0 else 0.0
        log_scale = jnp.where(log_scale < 0, below, jnp.tanh(log_scale))
        return jnp.append(drift + self.gain(t[None]) * score, log_scale)


@dataclasses.dataclass(frozen=True, eq=False)
class DiffusionSampler:
    """A Gaussian forward policy over T steps from 0, against a target on paths; made by `diffusion_sampler`.

    P_F(x_{t+1} | x_t) = Normal(x_t + f dt, r^2 sigma^2 dt), f and log r learned, dt = 1 / T, with r no less than
    `min_relative_scale` and the norm of f cut at `max_drift` (see the module's text for why). P_B is the Brownian bridge to 0
    of standard deviation sigma. Together with R it makes the path measure R(x_1) P_B(path | x_1), which is Brownian motion (the
    reference) times h(x_1) = R(x_1) / Normal(x_1; 0, sigma^2); flows are kept relative to the reference likewise, log F(x_t) -
    log Normal(x_t; 0, sigma^2 t).

    - `forward`: P_F, a guide with the site "x", [T, d], and the deterministic "log_flow", [T].
    - `target`: the path measure as a model, Brownian motion with the factor "reward". Its evidence is Z, the integral of R.

    So `inference.elbo(sampler.target, sampler.forward)` is the pathwise reverse KL, `log_variance`, `iwelbo` and `smc` apply, and
    `balance` makes the objective of any balance loss.

    Attributes:
        log_density: log R, one point to one number.
        num_dims: d.
        num_steps: T.
        scale: sigma.
        control: initial network (x, t, score of R at x) -> [2 d].
        flow: "total" or "network".
        flow_network: initial network [d + 1] -> [1], or None.
        forward_looking: whether t log h(x_t) is a known part of the flow.
        min_relative_scale: least r.
        max_drift: largest norm of f.
    """

    log_density: Callable[[Array], Array]
    num_dims: int
    num_steps: int
    scale: float
    control: Any
    flow: Flow
    flow_network: Any
    forward_looking: bool
    min_relative_scale: float
    max_drift: float

    @property
    def forward(self) -> ppl.Program:
        """P_F."""
        return self._explore(1.0)

    def explore(self, noise: float | Array) -> ppl.Program:
        """P_F with its standard deviations times `noise`: a proposal of paths that go further.

        Args:
            noise: the factor.

        Raises:
            ValueError: steps so narrow that importance weights of the target have no variance (known factors only).
        """
        if is_concrete(noise) and not noise * self.min_relative_scale > LEAST_SCALE:
            raise ValueError(
                f"explore: noise {noise} times min_relative_scale {self.min_relative_scale} is not above 1 / sqrt(2) = "
                f"{LEAST_SCALE:.4f}, and weights of such paths have an infinite variance. Use noise of at least 1, or a larger "
                "min_relative_scale."
            )
        return self._explore(noise)

    def _explore(self, noise: float | Array) -> ppl.Program:
        @ppl.model
        def forward() -> Array:
            control, flow = self._declare()
            score = jax.grad(self.log_density)

            def step(x: Array, t: Array) -> tuple[Array, None]:
                ppl.deterministic("log_flow", flow(x, t))
                drift, log_scale = jnp.split(control(x, t, stop(score(x))), 2)
                norm = jnp.sqrt((drift**2).sum() + 1e-12)
                drift = drift * jnp.minimum(1.0, self.max_drift / norm)
                # Half a rounding error of the network's own bound is no reason to cut its gradient.
                log_scale = jnp.maximum(log_scale, math.log(self.min_relative_scale) - 1e-6)
                law = dist.Normal(
                    x + drift / self.num_steps, noise * self._step_scale * jnp.exp(log_scale)
                )
                x = ppl.sample("x", law.to_event(1))
                return x, None

            return ppl.scan(step, jnp.zeros(self.num_dims), self._times)[0]

        return forward

    @property
    def target(self) -> ppl.Program:
        """The reference times h."""

        @ppl.model
        def target() -> Array:
            def step(x: Array, t: Array) -> tuple[Array, None]:
                x = ppl.sample("x", dist.Normal(x, self._step_scale).to_event(1))
                return x, None

            x, _ = ppl.scan(step, jnp.zeros(self.num_dims), self._times)
            ppl.factor("reward", self._log_h(x))
            return x

        return target

    def balance(self, loss: Loss, *, num_paths: int, noise: float = 1.0) -> inference.Objective:
        """A balance loss at paths from P_F, whose law is held fixed, as an objective for `inference.fit` (minimised).

        Args:
            loss: e.g. `trajectory_balance()`.
            num_paths: paths of a step.
            noise: factor on the standard deviations with which paths are drawn, 1 for on-policy.

        Raises:
            ValueError: a loss that reads flows which the sampler does not learn, too few paths, noise that is not positive.

        Validity: zero if and only if the process is constant on every path, and then x_1 has density R / Z. Value and gradient
        are unbiased for the mean loss of the paths' law, through which no gradient passes.
        """
        check_counts("balance", loss.least_batch, num_paths=num_paths)
        if not noise > 0:
            raise ValueError(f"balance: noise must be positive, got {noise}.")
        if loss.needs_flow and self.flow == "total":
            raise ValueError(
                f"balance: {loss.name} reads log F between start and end, but flow='total' learns log Z alone. Use "
                "diffusion_sampler(flow='network'), or trajectory_balance()."
            )

        @inference.objective(direction="min", weighing="refused")
        def balance(model: ppl.Program, guide: ppl.Program) -> Array:
            source = self._explore(noise).bind(jax.tree.map(stop, guide.params))

            def particle() -> Process:
                path = ppl.draw(source).choices
                return self._process(path, ppl.score(guide, path), ppl.score(model, path))

            return loss(ppl.particles(num_paths)(particle)())

        return dataclasses.replace(
            balance(self.target, self.forward, strategies=CONSTANT), name=loss.name
        )

    def log_weight_process(
        self, params: ParamMap, paths: Float[Array, "batch steps dims"]
    ) -> Process:
        """The process along given paths x_1, ..., x_T."""
        forward, target = self.forward.bind(params), self.target

        def one(path: Array) -> Process:
            choices = {"x": path}
            return self._process(choices, forward.trace(choices), target.trace(choices))

        return jax.vmap(one)(paths)

    def _process(self, path: Mapping[str, Array], q: ppl.Trace, p: ppl.Trace) -> Process:
        at_end = lambda x, end: jnp.append(x, end)
        length = jnp.int32(self.num_steps)
        known = jnp.zeros(self.num_steps)
        if self.forward_looking:
            before = jnp.concatenate([jnp.zeros((1, self.num_dims)), path["x"][:-1]])
            known = self._times * jax.vmap(self._log_h)(before)
        return Process(
            at_end(q.log_probs["x"], 0.0),
            jnp.concatenate([jnp.zeros(1), p.log_probs["x"]]),
            at_end(q.deterministic["log_flow"], 0.0),
            at_end(known, p.log_probs["reward"]),
            length,
            jnp.zeros_like(length),
            length,
        )

    @property
    def _times(self) -> Array:
        return jnp.arange(self.num_steps) / self.num_steps

    @property
    def _step_scale(self) -> float:
        return self.scale / self.num_steps**0.5

    def _log_h(self, x: Array) -> Array:
        return self.log_density(x) - dist.Normal(0.0, self.scale).log_prob(x).sum()

    def _declare(self) -> tuple[Callable[..., Array], Callable[..., Array]]:
        """Control and flow at the parameters of the running program."""
        control = ppl.module("control", self.control)
        if self.flow == "total":
            log_z = ppl.param("log_z", jnp.zeros(()))
            return control, lambda x, t: jnp.where(t == 0, log_z, 0.0)
        network = ppl.module("flow", self.flow_network)
        return control, lambda x, t: network(jnp.append(x, t))[0]


def diffusion_sampler(
    log_density: Callable[[Float[Array, " dims"]], Float[Array, ""]],
    num_dims: int,
    *,
    num_steps: int = 64,
    scale: float = 1.0,
    flow: Flow = "total",
    forward_looking: bool = False,
    control: object = None,
    flow_network: object = None,
    min_relative_scale: float = 0.75,
    key: Array,
) -> DiffusionSampler:
    """A sampler of R / Z, Z the integral of R, by a learned diffusion of `num_steps` steps from 0.

    Parameters: "control", and "flow" or "log_z".

    Args:
        log_density: log R of one point [d], nats, finite where Brownian motion goes; differentiable, since the network sees its
            gradient.
        num_dims: d.
        num_steps: T.
        scale: sigma, the standard deviation of the reference at the end; of the order of the target's width.
        flow: "total", log Z alone (trajectory balance); "network", log F of every point (detailed, subtrajectory balance).
        forward_looking: t log R(x) / Normal(x; 0, sigma^2) is a known part of log F.
        control: an equinox module (x, t, score) -> [2 d], drift and log relative scale; None: `Control`, zero before training.
        flow_network: for flow="network", an equinox module [d + 1] -> [1]; None: a perceptron of two hidden layers of 64.
        min_relative_scale: least standard deviation of a step relative to the reference's, above 1 / sqrt(2), below which
            importance weights have an infinite variance, and at most 1.
        key: PRNG key of the initial values.

    Raises:
        ValueError: sizes that are not positive; a `min_relative_scale` outside of (1 / sqrt(2), 1]; a density that does not map
            one point to one number; choices that do not go together.

    Validity: weights R P_B / P_F have a finite variance if R is bounded by a multiple of Normal(0, sigma^2), so that tails are no
    wider than the reference's: standard deviations of the steps are kept above `min_relative_scale` of the reference's, those
    that a control of one's own returns included, and the norm of the drift below 100 sigma. A Gaussian target of standard
    deviation v needs T of at least (sigma^2 / v^2 - 1) / (1 / min_relative_scale^2 - 1) steps then for an exact sampler to exist.

    Reference: Lahlou et al. 2023, arXiv:2301.12594 (continuous GFlowNets); Zhang and Chen 2022, arXiv:2111.15141 (path integral
    sampler); Sendera et al. 2024, arXiv:2402.05098 (losses, exploration, learned variances).

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> from lapilli import inference
        >>> from lapilli.models import gflownet
        >>> log_r = lambda x: dist.Normal(1.0, 0.5).log_prob(x).sum()
        >>> sampler = gflownet.diffusion_sampler(log_r, 1, num_steps=8, key=jax.random.key(0))
        >>> bound = inference.elbo(sampler.target, sampler.forward)  # pathwise
        >>> loss = sampler.balance(gflownet.trajectory_balance(), num_paths=16)
        >>> sorted(loss.init(jax.random.key(1)))
        ['control', 'log_z']
    """
    check_counts("diffusion_sampler", num_dims=num_dims, num_steps=num_steps)
    problems = []
    if not scale > 0:
        problems.append(f"scale must be positive, got {scale}")
    if flow not in get_args(Flow):
        problems.append(f"flow must be one of {list(get_args(Flow))}, got {flow!r}")
    elif flow == "total" and (forward_looking or flow_network is not None):
        problems.append(
            "flow='total' learns log Z alone, and takes neither forward_looking nor flow_network. Use flow='network'"
        )
    point = jax.ShapeDtypeStruct((num_dims,), jnp.result_type(float))
    if not LEAST_SCALE < min_relative_scale <= 1:
        problems.append(
            f"min_relative_scale must lie above 1 / sqrt(2) = {LEAST_SCALE:.4f}, where weights of the paths have an "
            f"infinite variance, and not above 1, got {min_relative_scale}. The default is 0.75"
        )
    number = lambda x: log_number("diffusion_sampler: log_density", log_density(x))
    shape = jax.eval_shape(number, point).shape
    if shape != ():
        problems.append(
            f"log_density maps a point [{num_dims}] to shape {shape}; it must return one number, e.g. by summing"
        )
    if problems:
        raise ValueError("diffusion_sampler: " + ";\n".join(problems) + ".")
    control_key, flow_key = jax.random.split(key)
    if control is None:
        control = Control(num_dims, min_relative_scale=min_relative_scale, key=control_key)
    if flow == "network" and flow_network is None:
        flow_network = eqx.nn.MLP(num_dims + 1, 1, 64, 2, jax.nn.gelu, key=flow_key)
    return DiffusionSampler(
        log_density, num_dims, num_steps, scale, control, flow, flow_network, forward_looking,
        min_relative_scale, 100.0 * scale,
    )  # fmt: skip
