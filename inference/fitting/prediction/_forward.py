"""Which program draws what comes next, given draws of some of its sites.

Forward simulation draws a site that is not given from its law given what lies before it. That is its law given the draws only
if no given site depends on it: one that does would have told something about it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ....ppl._types import Choices, ModelFn
from ....ppl.densities import Eliminated
from ....ppl.language import Program
from ....ppl.traces import SiteInfo
from ..._arguments import Arguments, outcome, simulated
from ..._depends import depends
from ...inputs import Readers, check_noise, met, rows_of, unbound


def _check_cells(
    method: str, program: Eliminated, sites: Mapping[str, SiteInfo], choices: Mapping[str, PyTree]
) -> None:
    """Refuse to draw summed sites given cells that nobody gives."""
    cells = [
        n for n, s in sites.items() if s.is_imputed and n not in choices and n not in program.sites
    ]
    if cells:
        raise ValueError(
            f"{method}: {program!r} draws {list(program.sites)} given all cells, and the missing ones, {cells}, have no values. "
            "Leave missing cells out of the density of the model: ppl.sample(name, law.mask(seen), obs=filled) in place of "
            "obs_mask."
        )


def _check_shared(
    method: str,
    program: Eliminated,
    sites: Mapping[str, SiteInfo],
    choices: Mapping[str, PyTree],
    args: tuple,
) -> None:
    """Refuse to draw from their prior sites that new rows share with those that told of them."""
    targets = {n for n, s in sites.items() if s.kind == "latent" and n not in choices}
    targets -= set(program.sites)
    found = rows_of(lambda args: met(unbound(program), args), args, targets=targets)
    of_rows = [r.names("site") for r in found if r.names("site") & targets]
    plates = [set(sites[n].dims) - {None} for n in targets]
    # Without an argument that has rows, those of a plate: a site belongs to them if what is predicted lies in its plates.
    in_plates = lambda dims: bool(dims) and any(dims <= p for p in plates)
    own = lambda n: (
        any(n in r for r in of_rows) if of_rows else in_plates(set(sites[n].dims) - {None})
    )
    shared = [
        n
        for n in program.sites
        if n in sites and n not in choices and not in_scan(sites[n]) and not own(n)
    ]
    if shared:
        raise ValueError(
            f"{method}: {shared} are integrated out and shared by all rows, and the given draws do not hold what the data "
            "say of them: at other arguments they would be drawn from their prior. Draw them at the data for each of the "
            "given draws, states = program.posterior(key, choices, *args), and predict from both by "
            "inference.predict(program.program, {**choices, **states}, key, *new_args)."
        )


def in_scan(site: SiteInfo) -> bool:
    """Whether a site (its `SiteInfo`) stands in the steps of a scan."""
    return any(r.kind == "scan" for r in site.regions)


def forward_program(
    method: str, program: object, choices: Choices, args: tuple, num_seen: int | None = None
) -> Any:
    """The program to simulate with these choices (values or shapes) at these arguments.

    That is the program itself; if its discrete sites are summed out and the observations that told of them are not there, the
    program with these sites in it.

    Raises:
        ValueError: a given site, a factor or, where a scan goes on, an observation of it depends on one that would be drawn;
            `method` is who asks, and `num_seen` as in `predict`.
    """
    if not isinstance(program, Program):
        return program
    key = jax.random.key(0)
    if isinstance(program, Eliminated):
        joint = program.program
        sites = outcome(functools.partial(joint.simulate, key), args).sites
        new = [n for n, s in sites.items() if s.kind == "latent" and not s.is_imputed]
        new = [name for name in new if name not in choices and name not in program.sites]
        if not new:
            _check_cells(method, program, sites, choices)
            return program
        seen = [name for name, s in sites.items() if s.kind == "observed"]
        if seen:
            raise ValueError(
                f"{method}: {program!r} would draw {list(program.sites)} from what {seen} tell of them, but {new} are not given. "
                "Give all observations, or none of them."
            )
        if choices:
            _check_shared(method, program, sites, choices, args)
        program = joint
    trace = outcome(functools.partial(program.simulate, key), args)
    shapes = trace.choices
    # Of a scan that goes on, the steps that are given: as if all were.
    whole = {
        name: jax.ShapeDtypeStruct(shapes[name].shape, x.dtype)
        for name, x in choices.items()
        if name in shapes
    }
    goes_on = num_seen or any(jnp.shape(choices[n]) != x.shape for n, x in whole.items())
    heard = lambda s: s.kind == "factor" or goes_on and s.kind == "observed" and in_scan(s)
    seen = [n for n, s in trace.sites.items() if heard(s) and s.alters_law]
    split = Arguments(args)
    run = lambda key, given, a: program.generate(key, given, *split.join(a))[0].log_probs
    closed, out = jax.make_jaxpr(run, return_shape=True)(
        key, whole, split.arrays(args)
    )  # fmt: skip
    marks = [True] + [False] * (len(closed.jaxpr.invars) - 1)
    check_noise(method, program, args, closed, marks)
    reads = jax.tree.unflatten(jax.tree.structure(out), depends(closed.jaxpr, marks))
    drawn = [n for n in shapes if n not in choices]
    for name in filter(reads.get, (*whole, *seen)):
        if name in seen:
            raise ValueError(
                f"{method}: '{name}' depends on a site that would be drawn anew (of {drawn}), "
                "and tells something about it that forward simulation does not hear. Give that site, too."
            )
        raise ValueError(
            f"{method}: site '{name}' is kept, and its law depends on a site that would be drawn anew (of {drawn}), which "
            "the kept value tells something about. Keep what it depends on, too, or let it be drawn."
        )
    return program


def check_given(
    method: str, model: ModelFn, given_choices: Mapping[str, PyTree], args: tuple, remedy: str
) -> None:
    """Refuse observations that would be drawn anew before a prediction is made from them, or beside one that they tell of.

    Args:
        method: who asks.
        model: the program.
        given_choices: the sites that draws hold.
        args: arguments of the prediction.
        remedy: a call that predicts with observations set.
    """
    if not isinstance(model, Program):
        return
    trace = simulated(model, args)
    latent = [n for n, s in trace.sites.items() if s.kind == "latent"]
    predicted = [n for n in latent if n not in given_choices and not trace.sites[n].is_imputed]
    given = [n for n, s in trace.sites.items() if s.kind == "observed"]
    if not (predicted and given):
        return
    split = Arguments(args)
    choices = {n: x for n, x in trace.choices.items() if n in latent}

    def reads(program: ModelFn) -> dict[str, bool]:
        run = lambda key, choices, a: program(key, choices, *split.join(a)).log_probs
        closed, shapes = jax.make_jaxpr(run, return_shape=True)(
            jax.random.key(0), choices, split.arrays(args)
        )
        marks = [True] + [False] * (len(closed.jaxpr.invars) - 1)
        return jax.tree.unflatten(jax.tree.structure(shapes), depends(closed.jaxpr, marks))

    # All latent sites are given, so that only `rng_key` and observations that are drawn anew read the key.
    anew, noise = reads(model.predict_trace), reads(lambda *a: model.generate(*a)[0])
    if wrong := [n for n in predicted if anew.get(n) and not noise.get(n)]:
        raise ValueError(
            f"{method}: {wrong} are to be predicted from values that these arguments give for {given}, but predictions draw "
            f"observations anew, and the values would not count. Leave them out of the arguments (None) and set them: {remedy}."
        )
    readers = Readers(model, args, trace)
    leaves = [n for n in predicted if not readers.is_heard(n)]
    for name in (n for n in predicted if leaves and n not in leaves):
        if beside := [n for n in readers(name) if n in leaves]:
            raise ValueError(
                f"{method}: {beside} are to be predicted from '{name}', which is drawn anew from the model, and the values that "
                f"these arguments give for {given} tell of it: they would not count. Leave them out of the arguments (None), to "
                "predict without them; or fit these rows too, with what is to be predicted in them unobserved."
            )
