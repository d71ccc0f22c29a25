"""What is asked: a program with its arguments, checked, and its latent sites drawn from what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PyTree
from numpyro.infer.autoguide import AutoGuide

from ... import ppl
from ...ppl._types import ModelFn
from ...ppl.densities import Eliminated
from ...ppl.language import Program, as_arguments, as_program, as_tuple, labels_of
from .._abstract_objective import AbstractObjective
from .._arguments import simulated
from .._mapped import map_keys
from ..inputs import (
    Readers,
    abstract_run,
    check_categories,
    check_free,
    check_none,
    check_numbers,
    check_observed,
    check_run,
    met,
    tells,
    tried_run,
    unbound,
    warn_of_unread,
)

_PRIOR = " Draws from the prior are made by program.simulate."


class Problem(NamedTuple):
    """A program, its arguments, and what data brought along as names.

    Attributes:
        program: as given, but for missing cells that no other statement reads: they integrate to one, and have no density.
        model: with all its sites: of an eliminated one the program inside.
        args: arguments.
        labels: levels and columns among them.
        trace: an abstract run of `program`.
        latent: the latent sites of `model`.
        mesh: devices over which chains and draws are split.
    """

    program: Program
    model: Program
    args: tuple
    labels: Mapping[str, tuple[Any, ...]]
    trace: ppl.Trace
    latent: tuple[str, ...]
    mesh: Mesh | None = None


def posed(method: str, model: ModelFn, args: PyTree) -> Problem:
    """The problem.

    Raises:
        TypeError: the model is an objective, a guide or no program; the arguments are no tuple or dict.
        ValueError: it observes nothing, has parameters to be learned, or subsamples its rows; data are wrong or missing.
    """
    if isinstance(model, AbstractObjective | AutoGuide):
        raise TypeError(
            f"{method}: argument 'model' is {'a guide' if isinstance(model, AutoGuide) else 'an objective'}, "
            f"{type(model).__name__}. Pass the model, whose posterior is asked for; inference.fit trains objectives."
        )
    args = () if args is None else args
    if not isinstance(args, tuple | Mapping):
        raise TypeError(
            f"{method}: argument 'args' must hold the program's arguments, a tuple such as (x,) or a dict such as {{'x': x}}; "
            f"got {type(args).__name__}. Batches from an iterable are for inference.fit."
        )
    program = as_program(model)
    raw = as_tuple(args)
    arguments, labels = as_arguments(args, program), labels_of(raw, program)
    whole = program.program if isinstance(program, Eliminated) else program
    trace = simulated(program, arguments)
    run = tried_run(whole, arguments) or abstract_run(whole, arguments)
    check_run(method, run)
    check_observed(method, whole, is_told=tells(run.trace.sites), more=_PRIOR)
    remedy = (
        "What is to be predicted is drawn afterwards: leave it out, and call predict of the draws."
    )
    check_none(method, whole, run.trace, arguments, remedy)
    warn_of_unread(method, run)
    check_free(method, run)
    check_numbers(method, run)
    check_categories(method, run, raw)
    _refuse_parameters(method, whole, arguments)
    if subsampled := [n for n, s in run.trace.sites.items() if s.subsampled]:
        raise ValueError(
            f"{method}: {subsampled} are in a plate that draws its rows, {list(run.trace.sites[subsampled[0]].subsampled)}: each "
            "evaluation would see other data. Build the program without subsample_size; minibatches are for inference.fit."
        )
    if idle := idle_cells(whole, run.trace, arguments):
        without = ppl.intervene(whole, idle)
        program = program.rebuilt(lambda _: without) if isinstance(program, Eliminated) else without
        trace = simulated(program, arguments)
    return Problem(program, whole, arguments, labels, trace, tuple(run.trace.choices))


def idle_cells(program: Program, trace: ppl.Trace, args: tuple) -> dict[str, jax.Array]:
    """Missing cells that no other statement reads, by name, filled with zeros."""
    readers = Readers(program, args, trace)
    return {
        n: jnp.zeros(x.shape, x.dtype)
        for n, x in trace.choices.items()
        if trace.sites[n].is_imputed and set(readers(n)) <= {n}
    }


def _refuse_parameters(method: str, program: Program, args: tuple) -> None:
    known = set(program.params or {})
    found = [n for kind, n in met(unbound(program), args).shapes if kind in ("param", "network")]
    if free := [n for n in found if n not in known]:
        raise ValueError(
            f"{method}: {program!r} has parameters that are to be learned, {free}, and a posterior is of latent sites. "
            "Train them by inference.fit and pass fit.model, where they are fixed, or give each a prior by ppl.sample."
        )


def completed(
    problem: Problem, program: Program, key: jax.Array, each: PyTree, choices: Callable[..., PyTree],
    batch_size: int = 500,
) -> dict[str, np.ndarray]:  # fmt: skip
    """All latent sites of the problem, arrays [S, ...]: those that are known, and the others drawn given them.

    Args:
        problem: what was asked.
        program: the form of it that was sampled.
        key: PRNG key.
        each: a tree of arrays [S, ...].
        choices: one of its entries -> the sites of `program` that are known.
        batch_size: draws held on the device at once.
    """
    whole = program.program if isinstance(program, Eliminated) else program
    latent = list(problem.latent)

    def draw(key: jax.Array, each: Array, *args: PyTree) -> dict[str, PyTree]:
        key, rest_key = jax.random.split(key)
        found = dict(choices(each))
        if isinstance(program, Eliminated):
            found |= program.posterior(key, found, *args)
        if set(latent) - set(found):  # what is shifted and scaled has its value in the trace
            trace = whole.generate(rest_key, found, *args)[0]
            found |= {**trace.choices, **trace.deterministic}
        known = {name: found[name] for name in latent if name in found}
        if len(known) < len(latent):  # idle cells
            known = problem.model.generate(rest_key, known, *args)[0].choices
        return {name: known[name] for name in latent}

    num_samples = len(jax.tree.leaves(each)[0])
    return map_keys(draw, key, num_samples, batch_size, problem.args, each, problem.mesh)
