"""Bounds from particle runs: E[log Z-hat] <= log p(x), for programs with scans."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ... import ppl
from ...ppl._checks import check_counts
from ...ppl._compat import typed_key
from ...ppl._own_jit import OwnJit
from ...ppl._show import shown
from ...ppl._types import Args, Key
from ...ppl.analysis import SitePlan
from ...ppl.checks import as_arrays, check_arguments, signature_of
from ...ppl.densities import Constrained
from ...ppl.language import joined, matched
from ...ppl.strategies import Pathwise, as_strategy
from ...ppl.traces import Trace, trace_of
from ..particles.engine import Settings, run_program
from ..particles.programs import SiteDraws
from ..particles.resampling import (
    Differentiation,
    Policy,
    ResamplingGradient,
    Scheme,
    Score,
    StopGradient,
    Transport,
    as_gradient,
    as_scheme,
    every,
    once_only,
    scored,
)
from ._factory import recreated
from ._objective import Objective, ready

Array = jax.Array


@recreated
def fivo(
    model: object,
    guide: object = None,
    *,
    num_particles: int,
    gradient: str | ResamplingGradient = "score",
    resampling: str | Scheme = "multinomial",
    policy: Policy | None = None,
    strategies: Mapping[str, object] | None = None,
    num_replicates: int | None = None,
    check_jumps: ppl.checks.CheckJumps = True,
) -> Objective:
    """Filtering variational objective: E[log Z-hat] <= log p(x), Z-hat the evidence estimate of a particle run (nats, maximised).

    With K particles resampled between the steps of the model's scans, log Z-hat = sum_t log sum_k W_{t-1,k} w_{t,k}: the bound
    tightens where `iwelbo` degenerates with the number of steps. One particle gives `elbo`, no resampling `iwelbo`.

    Args:
        model: program with observations, p.
        guide: proposal as in `smc`, q: a program of the same arguments for some or all latent sites, advanced step by step
            with the model's scan. None: the prior.
        num_particles: K.
        gradient: how the derivative passes through resampling. "score": unbiased for the bound. "drop" (**biased**; what the
            papers train with), "soft" and "ot" (**biased**). "stop_gradient": for d log p(x) of the model's parameters
            instead (Fisher's identity, consistent in K); it has nothing to say about a guide's. See `Score` etc.
        resampling: see `smc`; "score" needs "multinomial" or "killing".
        policy: when to resample, every step by default.
        strategies: pattern -> "reparam" or "reinforce". By default sites with a differentiable sampler are pathwise, and all
            others are scored; so are sites that ask for another strategy themselves.
        num_replicates: independent runs averaged in one estimate. With two or more, the mean of the others is the baseline of
            each one's score factors; hence two by default under "score", else one.
        check_jumps: see `ppl.expectation`.

    Raises:
        ValueError: what `smc` refuses; a pathwise value that makes a log-prob jump; a log-prob that is scaled by subsampling;
            "stop_gradient" with parameters of the guide; `strategies` other than pathwise ones and plain "reinforce".

    Validity: the value is unbiased for the bound under every gradient but "ot". The gradient is unbiased for the bound under
    "score", for model and guide parameters; the others are as their classes say.

    Example:
        >>> from lapilli import inference, ppl
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
        >>> def model(ys):
        ...     def step(x, y):
        ...         x = ppl.sample("x", dist.Normal(ppl.param("rho", 0.5) * x, 1.0))
        ...         return x, ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        ...     ppl.scan(step, 0.0, ys)
        >>> bound = inference.fivo(model, num_particles=8, gradient="drop", resampling="systematic")
        >>> params = bound.init(jax.random.key(0), jnp.zeros(3))
        >>> bool(bound.value(params, jax.random.key(1), jnp.zeros(3)) < 0)
        True

    Reference: Maddison et al. 2017, arXiv:1705.09279 (FIVO); Le et al. 2018, arXiv:1705.10306 (AESMC); Naesseth et al. 2018,
    arXiv:1705.11140 (VSMC).
    """
    scheme, strategy = as_scheme(resampling), as_gradient(gradient)
    if num_replicates is None:
        num_replicates = 2 if isinstance(strategy, Score) else 1
    check_counts("fivo", num_particles=num_particles, num_replicates=num_replicates)
    policy = policy or every()
    _check_strategies(strategies or {})
    history = "none" if isinstance(strategy, Transport) else "ancestors"
    strategy.check(scheme, policy, num_particles, history)
    return ParticleObjective(
        one_particle,
        ppl.as_program(model),
        None if guide is None else ppl.as_program(guide),
        {**(strategies or {}), "*": "auto"},
        num_replicates,
        name="fivo",
        check_jumps=check_jumps,
        weighing="refused",
        settings=Settings(
            num_particles,
            scheme.ancestors,
            policy,
            history,
            gradient=Differentiation(strategy, scheme, strategies or {}),
        ),
    )


def _check_strategies(strategies: Mapping[str, PyTree]) -> None:
    """A site is pathwise or scored, nothing else."""
    for pattern, strategy in strategies.items():
        chosen = None if strategy == "auto" else as_strategy(strategy, pattern)
        is_plain = isinstance(chosen, ppl.Reinforce) and chosen.baseline is None
        if chosen is not None and not isinstance(chosen, Pathwise) and not is_plain:
            raise ValueError(
                f"fivo: strategies={{'{pattern}': {strategy!r}}}: a particle run has sites that are pathwise or scored. "
                "Use 'reparam' or 'reinforce'; num_replicates >= 2 gives the score function its baseline."
            )


@recreated
def vsmc(
    model: object, guide: object = None, *, num_particles: int, **options: PyTree
) -> Objective:
    """Variational sequential Monte Carlo: `fivo` with resampling at every step (`policy` is not an option).

    Args:
        model: as for `fivo`.
        guide: as for `fivo`.
        num_particles: K.
        **options: of `fivo`, without `policy`.

    Validity: as `fivo`.
    Reference: Naesseth et al. 2018, arXiv:1705.11140.
    """
    return fivo(model, guide, num_particles=num_particles, policy=every(), **options)


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class ParticleObjective(Objective):
    """An objective estimated by particle runs; `fn` is its one-particle version, which serves checks and reports.

    Attributes:
        settings: of the particle run.
    """

    settings: Settings = dataclasses.field(kw_only=True)

    def _facts(self) -> dict[str, PyTree]:
        return super()._facts() | {"num_particles": self.settings.num_particles}

    @functools.cached_property
    def expectation(self) -> _ParticleExpectation:
        """The objective as an expectation over parameters."""
        return _ParticleExpectation(self)

    def traces(
        self, model: ppl.Program, guide: ppl.Program | None, *args: PyTree, **kwargs: PyTree
    ) -> dict[str, Trace]:
        """The traces of one particle."""
        return _one_particle(model, guide, joined(args, kwargs))[0]


def one_particle(model: ppl.Program, guide: ppl.Program | None, *args: PyTree) -> Array:
    """Log p - log q of one particle, sites that the guide does not draw from the prior."""
    return _one_particle(model, guide, args)[1]


def _one_particle(
    model: ppl.Program, guide: ppl.Program | None, args: Args
) -> tuple[dict[str, Trace], Array]:
    traces: dict[str, Trace] = {}
    given: dict[str, Array] = {}
    if guide is not None:
        traces["guide"] = ppl.draw(guide, *args)
        given = traces["guide"].choices
    recorder = Constrained(given)
    with recorder:
        retval = model(*args)
    traces["model"] = trace = trace_of(recorder, retval)
    if guide is not None:
        trace = matched(trace, traces["guide"], ("inside",))
    prior = set(trace.choices) - set(given)
    terms = [lp.sum() for name, lp in trace.log_probs.items() if name not in prior]
    value = sum(terms, jnp.zeros(()))
    return traces, value - traces["guide"].log_density if guide is not None else value


def _itself(log_weight: Array) -> Array:
    return log_weight


def _bounded(log_weight: Array) -> Array:
    """A rising function that is finite at -inf."""
    return jnp.arctan(1e-3 * log_weight)


class _ParticleExpectation:
    """What `ppl.Expectation` is to other objectives."""

    def __init__(self, objective: ParticleObjective) -> None:
        self.objective = objective
        assert objective.settings.gradient is not None
        self.differentiation: Differentiation = objective.settings.gradient
        self._ones: dict[Any, ppl.Expectation] = {}
        self._known: dict[int, tuple[Any, Any]] = {}
        self._compiled = OwnJit(jax.value_and_grad(self._value))
        self._compiled_value = OwnJit(self._value)

    def value(self, params: PyTree, key: PyTree, *args: PyTree) -> Array:
        params = as_arrays(params)
        self._check(params, args)
        return self._compiled_value(params, typed_key(key), args)

    def grad(self, params: PyTree, key: Key, *args: PyTree) -> PyTree:
        return self.step(params, None, key, *args)[1]

    def value_and_grad(self, params: ppl.Params, key: Key, *args: PyTree) -> tuple[Array, PyTree]:
        return self.step(params, None, key, *args)[:2]

    def step(
        self, params: PyTree, state: PyTree, key: PyTree, *args: PyTree
    ) -> tuple[Array, PyTree, PyTree]:
        params = as_arrays(params)
        self._check(params, args)
        value, grads = self._compiled(params, typed_key(key), args)
        return value, grads, {} if state is None else state

    def init_state(self, params: PyTree, *args: PyTree) -> dict[str, PyTree]:
        self._check(as_arrays(params), args)
        return {}

    def plan(self, params: PyTree, *args: PyTree) -> ppl.Plan:
        plan = self._one_particle(params, args).plan(params, *args)
        size, strategy = self.objective.settings.num_particles, self.differentiation.strategy
        scheme = self.differentiation.scheme.name
        ancestors = SitePlan(
            "ancestors", scheme, (size,), (), strategy.name, "gradient=", "1", strategy.is_biased
        )
        return dataclasses.replace(plan, sites=(*plan.sites, ancestors))

    def _value(self, params: dict[str, Array], key: Array, args: Args) -> Array:
        """The estimate; its derivative is the gradient's."""
        model, guide = self._programs(params)

        def run(key: Array) -> tuple[Array, Array]:
            fields = run_program(model, guide, key, args, self.objective.settings)
            return fields["increments"], fields["scores"]

        num_runs = self.objective.num_replicates
        increments, scores = jax.vmap(run)(jax.random.split(key, num_runs))
        if not self.differentiation.strategy.in_weights:
            baseline: Any = 0.0
            if num_runs > 1:
                costs = jnp.where(jnp.isfinite(increments), increments, 0.0)
                baseline = (costs.sum(0) - costs) / (num_runs - 1)
            increments = scored(increments, scores, baseline)
        return once_only(increments.sum()) / num_runs

    def _programs(self, params: PyTree) -> tuple[ppl.Program, ppl.Program | None]:
        o = self.objective
        model, guide = (ready(p, params, o.full_sizes) for p in (o.model, o.guide))
        return model, guide

    def _check(self, params: Mapping[str, Array] | ppl.Params, args: Args) -> None:
        """The checks of `ppl.expectation`, once per shape, on the one-particle objective."""
        check_arguments(args, self._known)
        program = self._one_particle(params, args).ready(params, *args)
        if program.facts[program.result].loud:
            # Weights are added up: a particle of weight zero is no infinity for all to see, but a jump.
            self._one_particle(params, args, _bounded).ready(params, *args)

    def _one_particle(
        self, params: PyTree, args: tuple[PyTree, ...], of: Callable[[Array], Array] = _itself
    ) -> ppl.Expectation:
        """The expectation of one particle's log-weight, or of a function of it."""
        signature = of, signature_of((params, args))
        if signature not in self._ones:
            o = self.objective
            run = o._run
            if isinstance(self.differentiation.strategy, StopGradient):
                self._refuse_guide_parameters(params, args)
                run = o.run_at  # the guide's stay as they are
            self._ones[signature] = ppl.expectation(
                lambda params, *args: of(run(params, *args)),
                strategies={
                    **dict.fromkeys(self._scored(params, args), "reinforce"),
                    "*": "reparam",
                },
                num_replicates=o.num_replicates,
                check_jumps=o.check_jumps,
                examples=o.examples,
            )
        return self._ones[signature]

    def _scored(self, params: Mapping[str, Array], args: Args) -> set[str]:
        """Sites that are not pathwise."""
        draws = SiteDraws(self.differentiation)

        def run(key: Array) -> PyTree:
            model, guide = self._programs(params)
            given = {} if guide is None else guide.propose(key, {}, None, *args, draw=draws).choices
            return model.propose(key, given, None, *args, draw=draws).choices

        jax.eval_shape(run, jax.random.key(0))
        return draws.scored

    def _refuse_guide_parameters(
        self, params: Mapping[str, Array] | ppl.Params, args: Args
    ) -> None:
        key, o = jax.random.key(0), self.objective
        if o.guide is None:
            return
        names = [
            set(jax.eval_shape(lambda k, p=p: dict(p.init(k, *args)), key))
            for p in (o.guide, o.model)
        ]
        own = sorted((names[0] - names[1]) & set(params))
        if own:
            raise ValueError(
                f"fivo: gradient='stop_gradient' estimates d log p(x), which does not depend on the guide's parameters {own}; "
                "they would wander. Use gradient='score' or 'drop', or a guide without parameters."
            )
