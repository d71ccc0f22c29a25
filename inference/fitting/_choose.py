"""What fit chooses where nothing was said: guide and objective; what programs and data it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree
from numpyro.infer.autoguide import AutoContinuous

from ... import ppl
from ...ppl._compat import typed_key
from ...ppl._types import Key, ModelFn
from ...ppl.densities import Eliminated
from ...ppl.language import Program, as_arguments, as_program, as_tuple, labels_of
from .._abstract_objective import AbstractObjective, guide_fn
from .._arguments import simulated
from .._host_keys import default_key
from .._processes import check_same
from ..inputs import (
    Readers,
    abstract_run,
    categories_of,
    check_branches,
    check_categories,
    check_free,
    check_none,
    check_numbers,
    check_observed,
    check_run,
    tells,
    tried_run,
    warn_of_unread,
)
from ..objectives import elbo
from ._options import FitOptions
from .data import held, row_blocks, with_rows_of_all
from .starts import AutoMeanField, AutoWhitenedNormal, OwnGuide

# Coordinates up to which all correlations are trained, and up to which they are those of the start; of more, there are none.
TRAINED_UP_TO, FACTOR_UP_TO = 30, 400
# Objectives whose guide is to become a posterior, or whose model learns from data.
_OF_POSTERIORS = frozenset(
    "elbo iwelbo vimco hvi iwhvi diwhvi renyi cubo chi rws wake_theta wake_phi fivo vsmc".split()
)
_ON_PURPOSE = " To fit what is not observed on purpose, say unobserved='allow'."


class ChosenFit(NamedTuple):
    """What is fitted to what.

    Attributes:
        objective: given, or made of a model.
        args: the program's arguments, or an iterable of batches.
        first_args: of blocks of rows those of the first one, else `args`.
        stored_args: what the `Fit` keeps of them; None of an iterable.
        labels: see `Fit`.
        key: of the run.
        keys: the same, or one per seed.
        mesh: devices to split over, if any.
        reasons: what was chosen, and why, by subject.
    """

    objective: AbstractObjective
    args: PyTree
    first_args: PyTree
    stored_args: tuple | None
    labels: dict[str, tuple]
    key: Key
    keys: Key
    mesh: Mesh | None
    reasons: dict[str, str]


def labels_in(raw: tuple, program: Any, args: tuple) -> dict[str, tuple]:
    """The names that data bring along, by argument; categories that a program would read as what they are not are refused."""
    if categories_of(raw, program):
        check_categories("fit", tried_run(program, args), raw)
    return labels_of(raw, program)


def choose(options: FitOptions) -> ChosenFit:
    """Data as arrays, and an objective for a model alone."""
    args, labels, mesh = options.args, {}, options.mesh
    objective: Any = as_program(options.objective) if options.is_model else options.objective
    if isinstance(args, Mapping | tuple):
        program = objective if options.is_model else getattr(objective, "model", None)
        raw = as_tuple(args)
        args = as_arguments(args, program)
        labels = labels_in(raw, program, args)
    key = default_key() if options.key is None else typed_key(options.key)
    if options.is_shared:
        _check_same(options, key, args)
    if options.spread_plate is not None and isinstance(args, tuple):
        args = with_rows_of_all(objective, args, options.spread_plate, mesh)
    stored = args if isinstance(args, tuple) else None
    reasons: dict[str, str] = {}
    if options.is_model and isinstance(args, tuple):
        check_jumps = True if options.check_jumps is None else options.check_jumps
        may_be_prior = options.unobserved == "allow"
        objective, reasons = choose_objective(
            objective, args, may_be_prior=may_be_prior, check_jumps=check_jumps
        )
    if isinstance(args, tuple) and mesh is None:
        args = held(args)
    first, guide = args, guide_fn(objective)
    is_single = mesh is None and options.num_seeds is None
    if options.is_model and is_single and isinstance(guide, OwnGuide):
        guide.blocks = row_blocks(objective.model, args, options.subsample)
        first = args if guide.blocks is None else guide.blocks.first
    keys = key if options.num_seeds is None else jax.random.split(key, options.num_seeds)
    return ChosenFit(objective, args, first, stored, labels, key, keys, mesh, reasons)


def _check_same(options: FitOptions, key: Key, args: PyTree) -> None:
    """Refuse, in all processes of a run, what is not the same in all."""
    names = "num_steps num_seeds average subsample plate_sizes callback_every checkpoint checkpoint_every"
    told = f"{[str(getattr(options, name)) for name in names.split()]}{options.prefetch > 0}"
    common = args if isinstance(args, tuple) and options.spread_plate is None else ()
    what = {"options": told, "keys": key, "params": options.params, "args": common}
    check_same("fit", what)


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
        warn_of_unread("fit", run)
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
    readers = Readers(program, args, trace)
    for name in missing:
        if heard := [n for n in readers(name) if n not in missing]:
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
        simulated(summed, args)
    except ValueError as err:
        raise ValueError(
            f"fit: the discrete sites {discrete} of {program!r} cannot be summed out ({err}), and there is no other default. "
            + remedy
        ) from err
    return summed
