"""What fit chooses where nothing was said: guide, objective, optimiser; and whether the answer can be trusted."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from numpyro.infer.autoguide import AutoContinuous

from ... import ppl
from ...ppl._types import Key, ModelFn, ParamMap
from ...ppl.densities import Eliminated
from ...ppl.language import Program
from .._abstract_objective import AbstractObjective
from .._arguments import outcome
from .._observed import (
    check_branches,
    check_free,
    check_none,
    check_numbers,
    check_observed,
    readers,
    tells,
)
from .._runs import abstract_run, check_run, tried_run
from ..objectives import elbo
from ._optimizer import leaf_names, memory_of
from ._whitened import AutoMeanField, AutoWhitenedNormal
from .stationarity import MAX_STEPS, MOST_NATS

if TYPE_CHECKING:
    import optax

# Coordinates up to which all correlations are trained, and up to which they are those of the start; of more, there are none.
TRAINED_UP_TO, FACTOR_UP_TO = 30, 400
ARRAY_RATE, MODULE_RATE = 0.02, 0.001  # of Adam
RATES = f"Adam, {ARRAY_RATE} for arrays, {MODULE_RATE} for the weights of modules"
TRIAL = 1000  # steps: nobody takes a shorter run under a guide of their own for a posterior
LEAST_MEMORY = 99  # gradients: of 100, widths are off by less than 1 %
MOST_JUDGED = (
    100  # coordinates: of more, the weights of all but exact guides have k-hat above the threshold
)
_BOUNDS = ("elbo", "iwelbo")
# Objectives whose guide is to become a posterior, or whose model learns from data.
_OF_POSTERIORS = frozenset(
    "elbo iwelbo vimco hvi iwhvi diwhvi renyi cubo chi tvo rws wake_theta wake_phi fivo vsmc".split()
)
_ON_PURPOSE = " To fit what is not observed on purpose, say unobserved='allow'."


class ChosenObjective(NamedTuple):
    """An objective, and what was chosen with why, by subject; nothing, if the objective was given."""

    objective: AbstractObjective
    reasons: dict[str, str]


def choose_objective(
    model: ModelFn, args: tuple, *, may_be_prior: bool, check_jumps: ppl.checks.CheckJumps = True
) -> ChosenObjective:
    """The evidence lower bound of a model with a Normal guide on all continuous sites; discrete ones are summed out.

    Raises:
        ValueError: the discrete sites cannot be summed out; missing cells are read by other statements; unless `may_be_prior`,
            nothing is observed, or an observation is None.
    """
    program = ppl.as_program(model)
    run = abstract_run(program, args)
    trace = run.trace
    check_run("fit", run)
    if not may_be_prior:
        check_observed("fit", program, is_told=tells(trace.sites), more=_ON_PURPOSE)
        check_none("fit", program, trace, args, _ON_PURPOSE.strip())
    check_free("fit", run)
    inside = program.program if isinstance(program, Eliminated) else program
    check_numbers("fit", run._replace(program=inside))
    is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
    missing = [name for name in trace.choices if trace.sites[name].is_imputed]
    latent = {name: x for name, x in trace.choices.items() if name not in missing}
    discrete = [name for name, x in latent.items() if not is_float(x)]
    size = sum(math.prod(x.shape) for x in latent.values() if is_float(x))
    reasons = {}
    _refuse_read_cells(program, missing, trace, args)
    check_branches("fit", trace)
    if discrete and missing:
        # All that reads these cells is missing, too: together they integrate to one.
        zeros = {n: jnp.zeros(x.shape, x.dtype) for n, x in trace.choices.items() if n in missing}
        reasons["missing"] = (
            f"{', '.join(missing)} left out, since nothing that was seen reads them"
        )
        program, missing = ppl.intervene(program, zeros), []
    if discrete:
        program = _summed(program, discrete, args)
        reasons["discrete"] = f"{', '.join(discrete)} summed out, exactly (ppl.eliminate)"
    if size == 0:
        reasons["guide"] = "none, since no continuous site is latent"
        return ChosenObjective(
            elbo(program, lambda *args, **kwargs: None, check_jumps=check_jumps), reasons
        )
    if missing:
        reasons["missing"] = f"{', '.join(missing)} left to the model"
    guide, reasons["guide"] = _guide(program, size, tuple(missing))
    return ChosenObjective(
        elbo(program, guide, check_jumps=check_jumps), reasons | {"objective": "elbo"}
    )


def _guide(program: Program, size: int, missing: tuple[str, ...]) -> tuple[AutoContinuous, str]:
    """The guide, and what is told of it."""
    if size > FACTOR_UP_TO:
        guide: AutoContinuous = AutoMeanField(program, hidden=missing)
        return (
            guide,
            f"AutoMeanField, for {size} coordinates (more than {FACTOR_UP_TO}), without correlations",
        )
    is_full = size <= TRAINED_UP_TO
    guide = AutoWhitenedNormal(program, rank="full" if is_full else "diagonal", hidden=missing)
    kind = (
        f"(at most {TRAINED_UP_TO})"
        if is_full
        else f"(more than {TRAINED_UP_TO}), correlations as at the start"
    )
    return guide, f"AutoWhitenedNormal, for {size} coordinates {kind}"


def programs_of(objective: AbstractObjective) -> list[ModelFn]:
    """The models and guides of an objective, or of those that it is made of."""
    if objective.parts:
        return [p for part in objective.parts for p in programs_of(part)]
    found = [getattr(objective, role, None) for role in ("model", "guide")]
    return [program for program in found if program is not None]


def check_programs(
    method: str, objective: AbstractObjective, args: tuple, *, may_be_prior: bool
) -> None:
    """Refuse a model that observes nothing, if the guide is to become its posterior, and what `check_run` refuses of both."""
    if objective.parts:
        for part in objective.parts:
            check_programs(method, part, args, may_be_prior=may_be_prior)
        return
    for role in ("model", "guide"):
        if (run := tried_run(getattr(objective, role, None), args)) is None:
            continue
        if (
            role == "model"
            and not may_be_prior
            and getattr(objective, "name", "") in _OF_POSTERIORS
        ):
            check_observed(
                method, objective.model, is_told=tells(run.trace.sites), more=_ON_PURPOSE
            )
        check_run(method, run)


def _refuse_read_cells(program: Program, missing: list[str], trace: ppl.Trace, args: tuple) -> None:
    """Refuse to leave to their prior missing cells of which other statements tell."""
    for name in missing:
        if heard := [n for n in readers(program, name, trace, args) if n not in missing]:
            raise ValueError(
                f"fit: {heard} depend on the missing cells '{name}', and the default guide proposes no missing cells: they "
                f"would be drawn from their prior, which hears nothing of {heard}. Write a guide that proposes them, "
                f"ppl.sample('{name}', law, obs_mask=mask), and pass fit(inference.elbo(model, guide), args=...), or use "
                "NumPyro's NUTS, which draws them with the rest."
            )


def _summed(program: Program, discrete: list[str], args: tuple) -> Program:
    remedy = (
        "Write a guide for them and choose strategies: fit(inference.elbo(model, guide, strategies='auto'), args=...), or use "
        "inference.smc."
    )
    try:
        summed = ppl.eliminate(program, discrete)
        outcome(lambda *args: summed.simulate(jax.random.key(0), *args).log_density, args)
    except ValueError as err:
        raise ValueError(
            f"fit: the discrete sites {discrete} of {program!r} cannot be summed out ({err}), and there is no other default. "
            + remedy
        ) from err
    return summed


def default_optimizer(
    params: ParamMap,
    num_steps: int | None,
    parts: Mapping[str, float] | None = None,
    fixed: Collection[str] = (),
) -> optax.GradientTransformation:
    """Adam: faster for arrays than for the weights of modules; slowed down to a halt over `num_steps` if these are known.

    `parts` of these rates are for the parameters that it names; those that are fixed have none, and no state.
    """
    import optax

    def adam(rate: float) -> optax.GradientTransformation:
        return optax.chain(optax.scale_by_adam(), _cosine(rate)) if num_steps else optax.adam(rate)

    base = lambda n: ARRAY_RATE if hasattr(params[n], "dtype") else MODULE_RATE
    parts = {n: (parts or {}).get(n, 1.0) for n in params} | dict.fromkeys(fixed, 0.0)
    rates = [base(n) * parts[n] for n in leaf_names(params)]
    labels = jax.tree.unflatten(jax.tree.structure(params), rates)
    of = lambda rate: adam(rate) if rate else optax.set_to_zero()
    return optax.partition({rate: of(rate) for rate in set(rates)}, labels)


def fixed_of(objective: AbstractObjective) -> tuple[str, ...]:
    """Parameters of a chosen guide that no gradient changes."""
    guide = getattr(getattr(objective, "guide", None), "fn", None)
    return guide.fixed if isinstance(guide, AutoWhitenedNormal) else ()


def _cosine(rate: float) -> optax.GradientTransformation:
    """Descent at `optax.cosine_decay_schedule` of a length that the update is told: runs of any length are one program."""
    import optax

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: PyTree
    ) -> tuple[PyTree, PyTree]:
        num_steps = extra["num_steps"]
        at = jnp.minimum(jnp.asarray(state.count, float), num_steps)
        step = -rate * 0.5 * (1 + jnp.cos(jnp.pi * at / num_steps))
        count = optax.safe_increment(state.count)
        return jax.tree.map(lambda u: step.astype(u.dtype) * u, updates), state._replace(
            count=count
        )

    init = lambda params: optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))
    return optax.GradientTransformationExtraArgs(init, update)


def rule_of(objective: AbstractObjective, *, has_minibatches: bool) -> dict[str, PyTree]:
    """Options of `settling` for an objective that was chosen: its bound is in nats of a posterior, or its guide has its units."""
    guide = getattr(getattr(objective, "guide", None), "fn", None)
    is_whitened = isinstance(guide, AutoWhitenedNormal)
    if has_minibatches:
        return {"watched": guide.trained[:1], "by": "gradients"} if is_whitened else {}
    return {"most": MOST_NATS} | ({"watched": guide.trained} if is_whitened else {})


def slower(objective: AbstractObjective, share: float) -> dict[str, float]:
    """Parameter -> part of the rate, for a guide that begins near its end and sees a share of the rows in each step.

    Noise of batches is sqrt(1 / share) times the gradient of a place that is one width off. That of scales it hits through the
    noise of each draw, which no epoch averages out.
    """
    guide = getattr(getattr(objective, "guide", None), "fn", None)
    if not isinstance(guide, AutoWhitenedNormal):
        return {}
    loc, scale = guide.trained
    return {loc: math.sqrt(share), scale: share}


def report(reasons: Mapping[str, str]) -> None:
    """Print what was chosen."""
    width = max(map(len, reasons))
    print(
        "fit chooses", *(f"  {k:<{width}}  {v}" for k, v in reasons.items()), sep="\n", flush=True
    )


def warn_of_short_memory(
    optimizer: Any, objective: AbstractObjective, params: ParamMap, num_steps: int | None
) -> None:
    """Warn of an optimiser under which the noise of a guide's gradient shifts where the parameters come to rest."""
    if getattr(objective, "guide", None) is None or (num_steps is not None and num_steps < TRIAL):
        return
    groups = optimizer.values() if isinstance(optimizer, Mapping) else [optimizer]
    trained = [group for group in groups if not isinstance(group, str)]
    memory = min((memory_of(group, params) for group in trained), default=math.inf)
    if memory < LEAST_MEMORY:
        warnings.warn(
            f"fit: argument 'optimizer' divides gradients by the root mean square of some {memory:.0f} of them. Under noise it "
            "comes to rest beside the optimum, at every learning rate: for a normal posterior at widths 7 % too large, if these "
            "are ten. Give it a longer memory, e.g. optax.adam(rate) or optax.rmsprop(rate, decay=0.999).",
            stacklevel=3,
        )


def warn_of_interrupt(steps: int, checkpoint: str | os.PathLike | None) -> None:
    """Say what Ctrl-C has done, since the script that called goes on."""
    goes_on = "Pass checkpoint=PATH, and the same call goes on where such a run ended."
    if checkpoint is not None:
        goes_on = f"The same call goes on at this step from '{os.fspath(checkpoint)}'."
    warnings.warn(
        f"fit: Ctrl-C after step {steps:,}. The fit of these steps is returned and the script goes on; where half a fit must "
        f"not be used, test fit.interrupted. {goes_on} Ctrl-C twice ends the script.",
        stacklevel=3,
    )


def warn_if_unsettled(fit: Any) -> None:
    """Warn where the run slowed down because it had to."""
    # The cosine of the pace is 0 in single precision some steps before its end.
    if fit.stop_reason == "settled" and fit.steps >= 0.999 * (MAX_STEPS + MAX_STEPS // 2):
        warnings.warn(
            f"fit: after {MAX_STEPS:,} steps the value had not settled, or its noise left that open. Look at "
            "fit.history['value']; train on with params=fit.last_params, another optimizer, or num_steps.",
            stacklevel=3,
        )


def is_judged(fit: Any, *, is_chosen: bool, has_minibatches: bool) -> bool:
    """Whether draws of the guide are compared with the posterior after the run; see `fit(k_hat=)`."""
    objective = fit.objective
    if not _is_whole(fit) or fit.num_seeds is not None:
        return False
    if is_chosen:
        return True
    if getattr(objective, "name", "") not in _BOUNDS or objective.site_weights is not None:
        return False
    if has_minibatches or fit.steps < TRIAL:
        return False
    draw = lambda *args: fit.guide.simulate(jax.random.key(0), *args).shared_choices
    return 0 < sum(math.prod(x.shape) for x in outcome(draw, fit.args).values()) <= MOST_JUDGED


def is_trained(fit: Any) -> bool:
    """Whether the objective judges its result; see `AbstractObjective.verdict`."""
    return _is_whole(fit) and fit.steps >= TRIAL


def _is_whole(fit: Any) -> bool:
    return not fit.interrupted and fit.args is not None


def warn_of_verdict(fit: Any, key: Key) -> None:
    """Warn of what the objective has against its result; once, whatever the number of seeds."""
    if fit.num_seeds is None:
        text = fit.objective.verdict(fit, key)
    else:
        text = of_seeds(fit.objective.verdicts(fit, key))
    if text is not None:
        warnings.warn(text, stacklevel=3)


def of_seeds(verdicts: Sequence[str | None]) -> str | None:
    """One text of those of several seeds, the first three that differ in full; None if there is none."""
    said: dict[str, list[int]] = {}
    for number, text in enumerate(verdicts):
        if text is not None:
            said.setdefault(text.removeprefix("fit: "), []).append(number)
    if not said:
        return None
    wrong = [number for number, text in enumerate(verdicts) if text is not None]
    is_any_left = len(wrong) < len(verdicts)
    rest = "Fit.seed(number) takes another one" if is_any_left else "no other is left"
    lines = [f"Seed {', '.join(map(str, those))}: {text}" for text, those in said.items()]
    more = [f"{len(lines) - 3} more of the kind."] if len(lines) > 3 else []
    head = f"fit: {len(wrong)} of {len(verdicts)} seeds, {wrong}, do not pass; {rest}."
    return "\n".join([head, *lines[:3], *more])
