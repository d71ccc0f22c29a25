"""From a program to a particle method, without rewriting it.

Input: a program, optionally a proposal program for (some of) its latent sites. Output: weighted traces whose weights target
the program's density. A site that the proposal draws contributes log p - log q, a site drawn from the prior nothing,
observations and factors their log-prob. Before a top-level `scan` and between its steps the particles may be resampled;
model and proposal then advance step by step together.

Invariant: the weighted particles after all statements target p(choices, data) / p(data), and E[exp(log_evidence)] =
p(data), whatever the (fixed) policy.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .... import ppl
from ....ppl._compat import Literal
from ....ppl._shared_jit import shared_scan
from ....ppl._types import Args
from ....ppl.traces import check_match, is_limit
from ...inputs import check_noise, check_observed, tells
from ..population import in_batches
from ..programs import (
    PARTICLE,
    SHARED,
    STREAM,
    LoopPair,
    Machine,
    SiteDraws,
    TracedProgram,
    Watched,
    check_cells,
    check_given,
    check_known,
    check_proposal,
    check_retained,
    check_sites,
    find_watched,
    hand_over,
    of_loop,
    pair_loops,
    proposal_inputs,
    watching,
)
from ..resampling import Resampled, box
from ._descent import Filter, Segment
from ._step import Cloud, Moved, Record, Retained, Settings

Array = jax.Array


def run_program(
    program: ppl.Program,
    proposal: ppl.Program | None,
    key: Array,
    args: Args,
    settings: Settings,
    retained: dict[str, Array] | None = None,
) -> dict[str, PyTree]:
    """Run the particle method; returns the fields of an `SMCResult`. `retained` choices are those of particle 0.

    With path "ancestor" that particle draws a new ancestor before each step of a scan; with "filter" the result also has
    "segments" for backward sampling. Both give the model all its latent sites: without a proposal it proposes to itself.
    """
    kept = dict(retained or {})
    model, guide, penalty = _traced(program, proposal, key, args, settings, kept)
    if retained is not None:
        check_retained(model, kept)
    if settings.path != "genealogy":
        check_given(model, list(guide.shapes.choices) if guide is not None else [])
    run = _FilterRun(model, guide, key, kept, settings)
    if penalty is not None:
        run.add(penalty)
    run.all_segments()
    # A proposal has weights of its own.
    is_told = bool(run.records) if proposal is not None else tells(model.shapes.sites)
    check_observed("smc", program, is_told=is_told)
    return run.result()


def _traced(
    program: ppl.Program,
    proposal: ppl.Program | None,
    key: Array,
    args: Args,
    settings: Settings,
    kept: dict[str, Array],
) -> tuple[TracedProgram, TracedProgram | None, Array | None]:
    """The model, what proposes to it, and a penalty for missing cells that are known later only (`check_cells`)."""
    gradient, look = settings.gradient, settings.look
    draws = {role: SiteDraws(gradient) for role in ("model", "guide")}

    def simulate(program: ppl.Program, role: str = "model") -> Callable[..., ppl.Trace]:
        """Sites take the proposal's values where it gives any; others are drawn, or kept in particle 0."""

        def fn(
            key: Array, keep: Array | None, kept: dict[str, PyTree], given: dict[str, Array]
        ) -> ppl.Trace:
            choices, keep = (given, None) if given else (kept, keep if kept else None)
            runner = watching(look if role == "model" else None, args)
            return program.propose(key, choices, keep, *args, draw=draws[role], runner=runner)

        return fn

    guide, given = None, {}
    single = (key, jnp.asarray(True), kept)
    if proposal is not None or settings.path != "genealogy":
        guide = TracedProgram(
            simulate(proposal or program, "guide"), (*single, {}), offers_reach=proposal is not None
        )
        if proposal is not None:
            check_proposal(guide.shapes, proposal)
        guide.signs = dict.fromkeys(guide.shapes.choices, -1.0)
        given = guide.offered_shapes
    # A watched run has sites that do not belong to the program's listing: it runs as a copy.
    copied = program if look is None else ppl.Program(program.fn, program.params)
    model = TracedProgram(simulate(copied), (*single, given))
    for traced, of in ((model, program), (guide, proposal or program)):
        if traced is not None:
            first = [i == 0 for i in range(len(traced.closed.jaxpr.invars))]  # the key
            check_noise("smc", of, args, traced.closed, first)
    model.given = tuple(sorted(given))
    model.signs = {
        name: 1.0
        for name, info in model.shapes.sites.items()
        if name in model.shapes.log_probs and (info.kind != "latent" or name in given)
    }
    penalty = None
    if proposal is not None and guide is not None:
        check_match(model.shapes, guide.shapes, ("covers",))
        penalty = check_cells(
            model, guide, (simulate(copied), (*single, given)), (simulate(proposal, "guide"), (*single, {}))
        )  # fmt: skip
    check_sites(gradient, draws, {"model": model, "guide": guide})
    return model, guide, penalty


class _FilterRun:
    """The weights and records of a run, and the order of its segments."""

    def __init__(
        self,
        model: TracedProgram,
        guide: TracedProgram | None,
        key: Array,
        kept: dict[str, Array],
        settings: Settings,
    ) -> None:
        self.settings, self.kept = settings, kept
        self.cloud = settings.start()
        self.pending: Array | None = None
        self.num_events = 0
        self.records: list[Record] = []
        self.segments: list[Segment] = []
        self.watched: Watched | None = None
        model_key, guide_key, self.key = jax.random.split(key, 3)
        self.model, self.guide = model, guide
        self.machine = self._start(model, model_key)
        self.proposer = None if guide is None else self._start(guide, guide_key)
        if settings.look is not None:
            self.watched = find_watched(model)
            self.machine.keep.discard(self.watched.steps)  # of each step, not of the path

    def _start(self, program: TracedProgram, key: Array) -> Machine:
        jaxpr, num_particles = program.closed.jaxpr, self.settings.num_particles
        leaves = jax.tree.leaves(self.kept)
        is_retained = jnp.arange(num_particles) == 0
        machine = Machine.start(
            program.closed, [key, is_retained, *leaves], [STREAM, PARTICLE, *[SHARED] * len(leaves)], num_particles
        )  # fmt: skip
        machine.slots = (jaxpr.invars[1],)  # offspring of the retained particle are not retained
        loops = program.loops() if self.settings.history != "full" else []
        in_loops = {v for i in loops for v in jaxpr.eqns[i].outvars}
        outputs = {v for v in jax.tree.leaves(program.trace) if not isinstance(v, Literal)}
        machine.keep = outputs - in_loops
        for atom, sign in program.weighted():
            if isinstance(atom, Literal) or atom in jaxpr.constvars:
                self.add(sign * jnp.sum(jnp.asarray(machine.values.value(atom))))
        return machine

    def all_segments(self) -> None:
        """Straight code, loop, straight code, ..."""
        for model_loop, guide_loop, made in pair_loops(self.model, self.guide):
            self._advance(model_loop, guide_loop)
            self._weigh()
            self._loop(model_loop, guide_loop, made)
        self._advance(len(self.model.closed.jaxpr.eqns), None)
        self._weigh()
        if self.settings.path == "filter":
            self.segments.append(Segment(self._new_values(), None))

    def add(self, log_potential: Array) -> None:
        """Part of the log-weight of the next weighing."""
        self.pending = log_potential if self.pending is None else self.pending + log_potential

    def _advance(self, stop: int, guide_stop: int | None) -> None:
        """Run straight code up to the given equations (all of the proposal's for None) and collect its weights."""
        if self.guide is not None and self.proposer is not None:
            end = len(self.guide.closed.jaxpr.eqns) if guide_stop is None else guide_stop
            self._run_to(self.proposer, self.guide, end)
            hand_over(self.guide, self.proposer, self.model, self.machine)
            self.proposer.forget()
        check_known(self.machine, self.model, stop)
        self._run_to(self.machine, self.model, stop)
        self.machine.forget()

    def _run_to(self, machine: Machine, program: TracedProgram, stop: int) -> None:
        signs, scores = {id(atom): sign for atom, sign in program.weighted()}, program.scores()
        for v in machine.run_to(stop):
            if id(v) in signs or id(v) in scores:
                kind, x = machine.values.read(v)
                total = jnp.sum(x, tuple(range(1 if kind == PARTICLE else 0, jnp.ndim(x))))
                if id(v) in signs:
                    self.add(signs[id(v)] * total)
                if id(v) in scores and self.settings.in_weights:
                    self.cloud = self.cloud._replace(
                        log_weights=self.cloud.log_weights + box(total)
                    )
                elif id(v) in scores:
                    self.cloud = self.cloud._replace(score=self.cloud.score + total.sum())

    def _weigh(self) -> None:
        """Use the weights collected since the last time, if there are any."""
        if self.pending is not None:
            log_potentials = jnp.broadcast_to(self.pending, (self.settings.num_particles,))
            self.pending = None
            self.cloud, record = self.settings.weigh(self.cloud, log_potentials)
            self.records.append(record)

    def _loop(self, model_loop: int, guide_loop: int | None, made: dict[PyTree, str]) -> None:
        settings, first = self.settings, self.num_events
        traced, numbers = {"model": (self.model, self.machine)}, {"model": model_loop}
        if self.guide is not None and self.proposer is not None and guide_loop is not None:
            traced["guide"], numbers["guide"] = (self.guide, self.proposer), guide_loop
        pair = LoopPair(traced, numbers, made, self.watched, settings.history)
        move_all = in_batches(pair.step, settings.num_particles, settings.batch_size)
        make_future = of_loop(self.model, pair.target)
        future = make_future() if settings.path == "ancestor" else None
        retained = {name: self.kept[name] for name in made.values() if name in self.kept}

        def step(cloud: Cloud, inputs: tuple[PyTree, ...]) -> tuple[Cloud, PyTree]:
            t, key, shared = inputs

            def move(chosen: Resampled) -> Moved:
                state, out = move_all(pair.in_slots(chosen.particles), shared, t)
                return Moved(state, out.log_weights, out.seen, out.log_probs, out.kept, out.made())

            return settings.step(
                first + t, key, cloud, move,
                states=lambda state: {**state["model"], "after": []},
                retained=None if future is None else Retained(future, retained, t),
            )  # fmt: skip

        values, watched = self._new_values(), self.watched
        seen = None if watched is None else self.machine.values.per_particle(watched.start)
        state, seen = settings.place.split((pair.initial(), seen))
        steps = jnp.arange(pair.target.length, dtype=jnp.int32)
        # All steps' keys at once: a step of few particles costs less than the hash of its key.
        keys = jax.vmap(lambda t: jax.random.fold_in(self.key, first + t))(steps)
        cloud, (record, kept, filtered) = shared_scan(
            step, self.cloud._replace(particles=state, seen=seen), (steps, keys, pair.shared_xs())
        )
        if filtered:
            self.segments.append(Segment(values, Filter(make_future, *filtered)))
        self.num_events += pair.target.length
        self.records.append(record)
        if any(pair.wanted.values()):
            kept = settings.islands.paths(
                kept, record["ancestors"], record["islands"], settings.place
            )
        pair.finish(cloud.particles, kept)
        self.cloud = cloud._replace(particles=None, seen=None)

    def _new_values(self) -> dict[str, Array]:
        """Given sites that became known since the last loop."""
        values = self.machine.values
        return {
            name: values.per_particle(v)
            for name, v in proposal_inputs(self.model).items()
            if v in values.env
            and not is_limit(name)
            and not any(name in segment.sites() for segment in self.segments)
        }

    def result(self) -> dict[str, PyTree]:
        """The fields of an `SMCResult`."""
        values = self.machine.values
        choices = {
            name: values.per_particle(atom)
            for name, atom in self.model.trace.choices.items()
            if isinstance(atom, Literal) or atom in values.env
        }
        programs = [p for p in (self.model, self.guide) if p is not None]
        return {
            **self.settings.fields(self.cloud, self.settings.place.split(choices), self.records),
            "is_scored": any(p.scored for p in programs),
            "limited": () if self.guide is None else self.guide.limited,
            **({"segments": self.segments} if self.settings.path == "filter" else {}),
        }
