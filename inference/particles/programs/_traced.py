"""Programs traced for the particle engine, and how the loops of a model and its proposal belong together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, PyTree

from .... import ppl
from ....ppl._compat import (
    ClosedJaxpr,
    Literal,
    Var,
    is_concrete,
    jaxpr_as_fun,
    scan_counts,
    without_dead_code,
)
from ....ppl._types import Key
from ....ppl.language import check_proposed_cells
from ....ppl.traces import as_choices, sites_of
from ..._depends import is_used
from ._interpreter import PARTICLE
from ._machine import Loop, Machine


class TracedProgram:
    """One program traced: its jaxpr, the atoms of its trace, and the signs with which log-probs enter the weight."""

    def __init__(
        self,
        fn: Callable[..., ppl.Trace],
        inputs: tuple[Array | Key | dict[str, PyTree], ...],
        offers_reach: bool = False,
    ) -> None:
        self.closed, out, atoms = _traced(fn, inputs, offers_reach, [])
        if handed := _handed_on(self.closed.jaxpr, atoms[0].log_probs):
            self.closed, out, atoms = _traced(fn, inputs, offers_reach, handed)
        self.shapes: ppl.Trace = out[0]
        self.limited = sites_of(out[1])
        self.trace: ppl.Trace = atoms[0]
        # What a model gets from this program, its proposal: values, and what their laws can be.
        self.offered: dict[str, Any] = self.trace.choices | atoms[1]
        self.offered_shapes: dict[str, Any] = self.shapes.choices | out[1]
        # What this program, the model, gets from a proposal; its last inputs, in this order.
        self.given: tuple[str, ...] = ()
        self.signs: dict[str, float] = {}
        # Sites whose draws carry no derivative: their log-probs make the score factor (`resampling/_differentiable.py`).
        self.scored: set[str] = set()

    def weighted(self) -> list[tuple[PyTree, float]]:
        """Log-prob atoms with their signs."""
        return [(self.trace.log_probs[name], sign) for name, sign in self.signs.items()]

    def scores(self) -> set[int]:
        """Identities of the log-prob atoms of the scored sites."""
        return {id(self.trace.log_probs[name]) for name in self.scored}

    def loops(self) -> list[int]:
        """Numbers of the top-level scans that make log-probs of the weight."""
        wanted = {id(atom) for atom, _ in self.weighted()}
        return [
            i
            for i, eqn in enumerate(self.closed.jaxpr.eqns)
            if eqn.primitive.name == "scan" and any(id(v) in wanted for v in eqn.outvars)
        ]


def _traced(
    fn: Callable[..., ppl.Trace], inputs: tuple[Any, ...], offers_reach: bool, copied: list[str]
) -> tuple[ClosedJaxpr, PyTree, PyTree]:
    """The jaxpr of a run, what it returns as shapes and as atoms; sites `copied` have a log-prob of their own."""

    def run(*inputs: Array | Key | dict[str, Array]) -> tuple[ppl.Trace, dict[str, PyTree]]:
        trace = fn(*inputs)
        log_probs = {n: x + 0.0 if n in copied else x for n, x in trace.log_probs.items()}
        # Masks and scales do not belong to the particles; `masks` finds them without a run.
        bare = dataclasses.replace(trace, log_probs=log_probs, cells={}, scales={}, masks={})
        return bare, as_choices(trace.reach) if offers_reach else {}

    closed, out = jax.make_jaxpr(run, return_shape=True)(*inputs)
    return closed, out, jax.tree.unflatten(jax.tree.structure(out), closed.jaxpr.outvars)


def _handed_on(jaxpr: Any, log_probs: dict[str, Any]) -> list[str]:
    """Sites whose log-prob is no variable of their own, which its equation would bring at its time.

    A factor hands on what it is given: the value of another factor, a carry of a scan, a site that the proposal draws.
    """
    skip = lambda eqn: scan_counts(eqn.params)[1] if eqn.primitive.name == "scan" else 0
    free = {id(v) for eqn in jaxpr.eqns for v in eqn.outvars[skip(eqn) :]}
    free |= {id(v) for v in jaxpr.constvars}
    found = []
    for name, atom in log_probs.items():
        if not isinstance(atom, Literal) and id(atom) not in free:
            found.append(name)
        free.discard(id(atom))
    return found


Run = tuple[Callable[..., ppl.Trace], tuple[Any, ...]]


def check_cells(
    model: TracedProgram, guide: TracedProgram, model_run: Run, guide_run: Run
) -> jax.Array | None:
    """`check_proposed_cells` of a proposal that makes missing cells: None, or zero or NaN where masks are known later only.

    Raises:
        ValueError: the masks differ, or depend on what is drawn.
    """
    sites = [name for name, info in model.shapes.sites.items() if info.is_imputed]
    if not set(sites) & set(guide.shapes.sites):
        return None
    with_masks = lambda shapes, run, what: dataclasses.replace(shapes, cells=_masks(run, what))
    penalty = check_proposed_cells(
        with_masks(model.shapes, model_run, "model"),
        with_masks(guide.shapes, guide_run, "proposal"),
    )
    return None if is_concrete(penalty) else penalty


def _masks(run: Run, what: str) -> dict[str, PyTree]:
    """The masks of missing cells of a run, which no draw may change."""
    fn, inputs = run
    closed, shapes = jax.make_jaxpr(lambda *x: fn(*x).cells, return_shape=True)(*inputs)
    pruned, is_used = without_dead_code(closed.jaxpr)
    if any(is_used):
        raise ValueError(
            f"smc: obs_mask of site(s) {sorted(shapes)} in the {what} depends on what is drawn, so that it cannot be compared "
            "with the other side's. Give both a mask that is data."
        )
    found = jaxpr_as_fun(ClosedJaxpr(pruned, closed.consts))()
    return jax.tree.unflatten(jax.tree.structure(shapes), found)


def signed_outputs(run: TracedProgram, loop: Loop) -> dict[int, float]:
    """Outputs of a loop's step that are log-probs of the weight, with their signs."""
    signs = {id(atom): sign for atom, sign in run.weighted()}
    return {i: signs[id(v)] for i, v in enumerate(loop.ys_out) if id(v) in signs}


def scored_outputs(run: TracedProgram | None, loop: Loop) -> list[int]:
    """Outputs of a loop's step that are log-probs of scored sites."""
    atoms = set() if run is None else run.scores()
    return [i for i, v in enumerate(loop.ys_out) if id(v) in atoms]


def wanted_outputs(loop: Loop, history: str) -> list[int]:
    """Stacked outputs of a loop that are needed after it."""
    live = loop.machine.live(loop.machine.position + 1)
    wanted = [i for i, v in enumerate(loop.ys_out) if v in live]
    if wanted and history == "none":
        raise ValueError(
            "smc: the program uses the stacked values of a scan after it, which needs the particles' paths. Use "
            "history='full'."
        )
    return wanted


def pair_loops(
    model: TracedProgram, guide: TracedProgram | None
) -> list[tuple[int, int | None, PyTree]]:
    """Loops of the model, each with the loop of the proposal that makes its sites step by step.

    The proposal runs forwards only: a loop of its that is over, since it also made another loop's sites or comes before theirs,
    has made whole paths, as has all that runs for a loop that takes sites of several.
    """
    inputs = proposal_inputs(model) if guide is not None else {}
    pairs, position = [], 0  # of the proposal
    for number in model.loops():
        loop = model.closed.jaxpr.eqns[number]
        fixed, partner = {}, None
        if guide is not None:
            body = loop.params["jaxpr"].jaxpr
            # Every loop is handed all sites' values that have its length; those that it uses tell its partner.
            used = {id(v) for i, v in enumerate(loop.invars) if is_used(body, i)}
            makers = {name: _maker(guide, name) for name, v in inputs.items() if id(v) in used}
            makers = {name: i for name, i in makers.items() if i is not None}
            if len(set(makers.values())) == 1 and min(makers.values()) >= position:
                partner = min(makers.values())
                length = guide.closed.jaxpr.eqns[partner].params["length"]
                if length != loop.params["length"]:
                    raise ValueError(
                        f"smc: the proposal's scan over {sorted(makers)} has {length} steps, the model's "
                        f"{loop.params['length']}. Give both the same number of steps."
                    )
                fixed = {
                    v: name
                    for name, v in inputs.items()
                    if v in loop.invars and _maker(guide, name) == partner
                }
            position = len(guide.closed.jaxpr.eqns) if partner is None else partner + 1
        pairs.append((number, partner, fixed))
    return pairs


def _maker(guide: TracedProgram, name: str) -> int | None:
    """The top-level scan of the proposal that makes site `name`."""
    atom = guide.offered[name]
    for i, eqn in enumerate(guide.closed.jaxpr.eqns):
        if eqn.primitive.name == "scan" and any(v is atom for v in eqn.outvars):
            return i
    return None


def proposal_inputs(model: TracedProgram) -> dict[str, Var]:
    """The input variables of the model that take the proposal's values, by site."""
    names = model.given
    return dict(zip(names, model.closed.jaxpr.invars[-len(names) :], strict=True)) if names else {}


def hand_over(
    guide: TracedProgram, proposer: Machine, model: TracedProgram, machine: Machine
) -> None:
    """Give the model the proposal's values that are known by now."""
    for name, v in proposal_inputs(model).items():
        atom = guide.offered[name]
        if v not in machine.values.env and (
            isinstance(atom, Literal) or atom in proposer.values.env
        ):
            machine.values.set([v], [proposer.values.per_particle(atom)], [PARTICLE])


def check_known(machine: Machine, run: TracedProgram, stop: int) -> None:
    names = {v: name for name, v in proposal_inputs(run).items()} if run.signs else {}
    for eqn in run.closed.jaxpr.eqns[machine.position : stop]:
        for v in eqn.invars:
            if not isinstance(v, Literal) and v in names and v not in machine.values.env:
                raise ValueError(
                    f"smc: the model needs site '{names[v]}' before the proposal draws it. Draw the proposal's sites in the "
                    "model's order."
                )


def check_made(run: TracedProgram, loop: Loop) -> None:
    """Stacked sites that a loop's steps use are made with it, or known by now."""
    names, first = (
        {v: n for n, v in proposal_inputs(run).items()},
        len(loop.consts) + loop.num_carry,
    )
    for i in loop.unknown:
        if is_used(loop.body.jaxpr, first + i):
            raise ValueError(
                f"smc: the model's scan needs site '{names[loop.xs[i]]}', which the proposal has drawn in a scan along with "
                "another one of the model's, and its paths were not kept. Use history='full', or give the proposal a scan for "
                "each of the model's, in its order."
            )


def check_retained(model: TracedProgram, retained: dict[str, Any]) -> None:
    """Every latent site has a value, and of its own shape: one that is broadcast would be another path."""
    latent = [n for n, info in model.shapes.sites.items() if info.kind == "latent"]
    missing = sorted(set(latent) - set(retained))
    if missing:
        raise ValueError(
            f"smc: the retained path has no values for the latent sites {missing}; drawn anew, they would change its law. Give "
            "every latent site a value."
        )
    for name in latent:
        have, want = retained[name].shape, model.shapes.choices[name].shape
        if have != want:
            raise ValueError(
                f"smc: the retained path has shape {have} at site '{name}', and the site has {want}. Nothing is broadcast "
                "silently: give each of its elements a value."
            )


def check_proposal(trace: ppl.Trace, proposal: ppl.Program) -> None:
    extra = [n for n, info in trace.sites.items() if info.kind in ("observed", "factor")]
    if extra:
        raise ValueError(
            f"smc: the proposal {proposal!r} has the observed sites {extra}, so its density is not the one it draws from. "
            "Leave observations to the model."
        )
    if trace.auxiliary:
        raise ValueError(
            f"smc: the proposal {proposal!r} has the auxiliary sites {sorted(trace.auxiliary)}; its density of the model's "
            "sites is then not known. Use ppl.marginal, or drop them."
        )
