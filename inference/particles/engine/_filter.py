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
from typing import Any

import jax
import jax.numpy as jnp

from .... import ppl
from ....ppl._compat import Literal
from ....ppl._match import check_match
from ....ppl._reach import is_limit
from ..population import Weights, in_batches, reweight, uniform
from ..programs import (
    LANE,
    SHARED,
    STREAM,
    Loop,
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
    scored_outputs,
    signed_outputs,
    wanted_outputs,
    watching,
)
from ..resampling import Differentiation, Drawing, Look, box, resample_ahead
from ._descent import Filter, Segment, new_ancestor, turned
from ._exchange import ALONE, Alone, Exchange
from ._mesh import ONE_DEVICE, Placement

Array = jax.Array


def run_program(
    program: ppl.Program,
    proposal: ppl.Program | None,
    key: Array,
    args: tuple[Any, ...],
    *,
    num_particles: int,
    scheme: Drawing,
    policy: Callable[[Array, Array], Any],
    batch_size: int | None,
    history: str,
    retained: dict[str, Array] | None = None,
    path: str = "genealogy",
    gradient: Differentiation | None = None,
    look: Look | None = None,
    place: Placement = ONE_DEVICE,
    islands: Alone | Exchange = ALONE,
) -> dict[str, Any]:
    """Run the particle method; returns the fields of an `SMCResult`. `retained` choices are those of particle 0.

    With path "ancestor" that particle draws a new ancestor before each step of a scan; with "filter" the result also has
    "segments" for backward sampling. Both give the model all its latent sites: without a proposal it proposes to itself.
    """
    kept = dict(retained or {})

    draws = {role: SiteDraws(gradient) for role in ("model", "guide")}

    def simulate(program: ppl.Program, role: str = "model") -> Callable[..., ppl.Trace]:
        """Sites take the proposal's values where it gives any; others are drawn, or kept in lane 0."""

        def fn(key: Array, keep: Array | None, kept: Any, given: Any) -> ppl.Trace:
            choices, keep = (given, None) if given else (kept, keep if kept else None)
            runner = watching(look if role == "model" else None, args)
            return program.propose(key, choices, keep, *args, draw=draws[role], runner=runner)

        return fn

    guide, given = None, {}
    single = (key, jnp.asarray(True), kept)
    if proposal is not None or path != "genealogy":
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
    if retained is not None:
        check_retained(model, kept)
    if path != "genealogy":
        check_given(model, list(guide.shapes.choices) if guide is not None else [])
    check_sites(gradient, draws, {"model": model, "guide": guide})
    engine = _Engine(
        model, guide, key, kept, num_particles, scheme, policy, batch_size, history, path, place, islands
    )  # fmt: skip
    engine.gradient = gradient
    if penalty is not None:
        engine.pending = penalty
    if look is not None:
        engine.watch(look, find_watched(model))
    engine.run()
    return engine.result()


class _Engine:
    """The weights and records of a run, and the order of its segments."""

    def __init__(
        self,
        model: TracedProgram,
        guide: TracedProgram | None,
        key: Array,
        kept: dict[str, Array],
        num_particles: int,
        scheme: Drawing,
        policy: Callable[[Array, Array], Any],
        batch_size: int | None,
        history: str,
        path: str,
        place: Placement,
        islands: Alone | Exchange,
    ) -> None:
        self.path, self.kept = path, kept
        self.place, self.islands = place, islands
        self.shares = islands.start()
        self.segments: list[Segment] = []
        self.num_particles, self.batch_size = num_particles, batch_size
        self.scheme, self.policy, self.history = scheme, policy, history
        self.log_weights = uniform(num_particles)
        self.gradient: Differentiation | None = None
        self.look = Look(None, None)
        self.watched: Watched | None = None
        self.score = jnp.zeros(())  # log-prob of the discrete choices so far
        self.pending: Array | None = None
        self.num_events = 0
        self.records: list[dict[str, Array]] = []
        model_key, guide_key, self.key = jax.random.split(key, 3)
        self.model, self.guide = model, guide
        self.machine = self._start(model, model_key, kept)
        self.proposer = None if guide is None else self._start(guide, guide_key, kept)

    def _start(self, program: TracedProgram, key: Array, kept: dict[str, Array]) -> Machine:
        jaxpr = program.closed.jaxpr
        leaves = jax.tree.leaves(kept)
        is_retained = jnp.arange(self.num_particles) == 0
        machine = Machine.start(
            program.closed, [key, is_retained, *leaves], [STREAM, LANE, *[SHARED] * len(leaves)],
            self.num_particles,
        )  # fmt: skip
        machine.slots = (jaxpr.invars[1],)  # offspring of the retained particle are not retained
        loops = program.loops() if self.history != "full" else []
        in_loops = {v for i in loops for v in jaxpr.eqns[i].outvars}
        outputs = {v for v in jax.tree.leaves(program.trace) if not isinstance(v, Literal)}
        machine.keep = outputs - in_loops
        for atom, sign in program.weighted():
            if isinstance(atom, Literal) or atom in jaxpr.constvars:
                self._add(sign * jnp.sum(jnp.asarray(machine.values.value(atom))))
        return machine

    def watch(self, look: Look, watched: Watched) -> None:
        """Resample by what is seen of the state."""
        self.look, self.watched = look, watched
        self.machine.keep.discard(watched.steps)  # of each step, not of the path

    def run(self) -> None:
        """All segments: straight code, loop, straight code, ..."""
        for model_loop, guide_loop, made in pair_loops(self.model, self.guide):
            self._advance(model_loop, guide_loop)
            self._weigh()
            self._loop(model_loop, guide_loop, made)
        self._advance(len(self.model.closed.jaxpr.eqns), None)
        self._weigh()
        if self.path == "filter":
            self.segments.append(Segment(self._new_values(), None))

    def _add(self, log_potential: Array) -> None:
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
                x, kind = machine.values.of[v], machine.values.kinds[v]
                total = jnp.sum(x, tuple(range(1 if kind == LANE else 0, jnp.ndim(x))))
                if id(v) in signs:
                    self._add(signs[id(v)] * total)
                if id(v) in scores and self.in_weights:
                    self.log_weights = self.log_weights + box(total)
                elif id(v) in scores:
                    self.score = self.score + total.sum()

    @property
    def in_weights(self) -> bool:
        """Whether scored draws act on their particle's weight."""
        return self.gradient is not None and self.gradient.strategy.in_weights

    def _weigh(self) -> None:
        """Use the weights collected since the last time, if there are any."""
        if self.pending is None:
            return
        potentials = jnp.broadcast_to(self.pending, (self.num_particles,))
        self.pending = None
        weights = self._reweight(self.log_weights, potentials)
        pooled = self.islands.weigh(self.shares, weights.increment)
        self.log_weights, self.shares = weights.log_weights, pooled.log_weights
        record = {
            "increments": pooled.increment,
            "ess": weights.ess,
            "is_resampled": jnp.zeros((), bool),
            "ancestors": jnp.arange(self.num_particles, dtype=jnp.int32),
            "step_log_weights": weights.log_weights,
            "scores": self.score,
            "islands": self.islands.record(pooled),
        }
        self.records.append(jax.tree.map(lambda x: x[None], record))

    def _reweight(self, log_weights: Array, potentials: Array) -> Weights:
        return self.place.copy(reweight(self.place.copy(log_weights), self.place.copy(potentials)))

    def _loop(self, model_loop: int, guide_loop: int | None, made: dict[Any, str]) -> None:
        target = Loop(self.machine, self.model.closed.jaxpr.eqns[model_loop], made)
        loops, signed = {"model": target}, {"model": signed_outputs(self.model, target)}
        sources: dict[str, int] = {}
        if self.guide is not None and self.proposer is not None and guide_loop is not None:
            maker = Loop(self.proposer, self.guide.closed.jaxpr.eqns[guide_loop], {})
            loops["guide"], signed["guide"] = maker, signed_outputs(self.guide, maker)
            offered = self.guide.offered
            sources = {name: maker.ys_out.index(offered[name]) for name in made.values()}
        wanted = {name: wanted_outputs(loop, self.history) for name, loop in loops.items()}
        programs = {"model": self.model, "guide": self.guide}
        scored = {name: scored_outputs(programs[name], loop) for name, loop in loops.items()}

        watched = None if self.watched is None else target.ys_out.index(self.watched.steps)

        def move(state: Any, batch: Any, shared: Any, t: Array) -> Any:
            state, outs, given = dict(state), {}, {}
            if "guide" in loops:
                state["guide"], outs["guide"] = loops["guide"].step(
                    state["guide"], shared["guide"], t, {}, batch
                )
                given = {name: outs["guide"][i] for name, i in sources.items()}
            state["model"], outs["model"] = target.step(
                state["model"], shared["model"], t, given, batch
            )
            terms = [
                sign * outs[name][i].reshape(len(outs[name][i]), -1).sum(1)
                for name, signs in signed.items()
                for i, sign in signs.items()
            ]
            score = sum(
                (
                    outs[name][i].reshape(batch.size, -1).sum(1)
                    for name, which in scored.items()
                    for i in which
                ),
                jnp.zeros(batch.size),
            )
            kept = {n: {i: outs[n][i] for i in w} for n, w in wanted.items()}
            if watched is not None:
                state["seen"] = outs["model"][watched]
            return state, sum(terms, jnp.zeros(())), score, kept, given

        move_all = in_batches(move, self.num_particles, self.batch_size)
        first = self.num_events
        make_future = of_loop(self.model, target)
        future = make_future() if self.path == "ancestor" else None
        retained = {name: self.kept[name] for name in made.values() if name in self.kept}

        def step(carry: Any, inputs: Any) -> Any:
            state, log_weights, score, shares = carry
            t, shared = inputs
            event_key = jax.random.fold_in(self.key, first + t)
            state, log_weights, shares, met = self.islands.exchange(
                first + t, state, log_weights, shares
            )
            before, turn = ({**state["model"], "after": []}, log_weights), 0
            if future is not None:
                turn = new_ancestor(
                    event_key, future, state["model"], log_weights, retained, t, self.batch_size
                )
                state, log_weights = turned((state, log_weights), turn)
            chosen = resample_ahead(
                event_key, state, log_weights, self.place.copy(state.get("seen")), self.look, self.scheme,
                lambda log_weights: self.policy(first + t, log_weights), self.gradient and self.gradient.offspring,
            )  # fmt: skip
            ancestors = (chosen.ancestors + turn) % self.num_particles
            offspring = self.place.split(chosen.particles)
            state = {name: loop.in_slots(offspring[name]) for name, loop in loops.items()}
            state, potentials, scores, kept, given = move_all(state, shared, t)
            state, kept = self.place.split((state, kept))
            score = score + chosen.score
            if self.in_weights:
                potentials = potentials + box(scores)
            else:
                score = score + scores.sum()
            weights = self._reweight(chosen.log_weights, potentials)
            # A turn by as many as there are says that no ancestor could be drawn.
            increment = jnp.where(turn < self.num_particles, weights.increment, jnp.nan)
            pooled = self.islands.weigh(shares, increment)
            record = {
                "increments": pooled.increment,
                "ess": weights.ess,
                "is_resampled": chosen.is_resampled,
                "scores": score,
                "islands": self.islands.record(pooled, met),
            }
            if self.history != "none":
                record["ancestors"] = self.place.split(ancestors)
                record["step_log_weights"] = self.place.split(weights.log_weights)
            made = {name: x for name, x in given.items() if not is_limit(name)}
            filtered = (*before, ancestors, made) if self.path == "filter" else ()
            return (state, weights.log_weights, score, pooled.log_weights), (
                record,
                kept,
                filtered,
            )

        state = {name: loop.initial() for name, loop in loops.items()}
        if self.watched is not None:
            state["seen"] = self.machine.values.as_lanes(self.watched.start)
        state = self.place.split(state)
        shared = {name: loop.shared_xs() for name, loop in loops.items()}
        steps = jnp.arange(target.length, dtype=jnp.int32)
        values = self._new_values()
        carry = (state, self.log_weights, self.score, self.shares)
        (state, self.log_weights, self.score, self.shares), (record, kept, filtered) = jax.lax.scan(
            step, carry, (steps, shared)
        )
        if filtered:
            self.segments.append(Segment(values, Filter(make_future, *filtered)))
        self.num_events += target.length
        self.records.append(record)
        if any(wanted.values()):
            kept = self.islands.paths(kept, record["ancestors"], record["islands"], self.place)
        for name, loop in loops.items():
            loop.finish(state[name], kept[name])

    def _new_values(self) -> dict[str, Array]:
        """Given sites that became known since the last loop."""
        values = self.machine.values
        return {
            name: values.as_lanes(v)
            for name, v in proposal_inputs(self.model).items()
            if v in values.of
            and not is_limit(name)
            and not any(name in segment.sites() for segment in self.segments)
        }

    def result(self) -> dict[str, Any]:
        """The fields of an `SMCResult`."""
        values = self.machine.values
        join = lambda name: jax.tree.map(
            lambda *x: jnp.concatenate(x), *[r[name] for r in self.records]
        )
        choices = {
            name: values.as_lanes(atom)
            for name, atom in self.model.trace.choices.items()
            if isinstance(atom, Literal) or atom in values.of
        }
        recorded = lambda name: join(name) if self.history != "none" else None
        return {
            "particles": self.place.split(choices),
            "log_weights": self.log_weights,
            "increments": join("increments"),
            "ess": join("ess"),
            "is_resampled": join("is_resampled"),
            "scores": join("scores"),
            "islands": join("islands"),
            "is_scored": any(p.scored for p in (self.model, self.guide) if p is not None),
            "limited": () if self.guide is None else self.guide.limited,
            "ancestors": recorded("ancestors"),
            "step_log_weights": recorded("step_log_weights"),
            "paths": None,
            **({"segments": self.segments} if self.path == "filter" else {}),
        }
