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
from jax.extend.core import ClosedJaxpr, Literal

from .. import ppl
from ..ppl._lane_keys import lane_keys
from ._feynman_kac import follow
from ._lanes import Loop, Machine
from ._population import lineages, over_lanes, resample, reweight, uniform

Array = jax.Array


class _Run:
    """One program traced: its jaxpr, the atoms of its trace, and the signs with which log-probs enter the weight."""

    def __init__(self, fn: Callable[..., ppl.Trace], inputs: tuple[Any, ...]) -> None:
        self.closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*inputs)
        leaves, self.tree = jax.tree.flatten(shapes)
        self.trace: ppl.Trace = jax.tree.unflatten(self.tree, self.closed.jaxpr.outvars)
        self.shapes: ppl.Trace = shapes
        self.signs: dict[str, float] = {}

    def weighted(self) -> list[tuple[Any, float]]:
        """Log-prob atoms with their signs."""
        return [(self.trace.log_probs[name], sign) for name, sign in self.signs.items()]

    def loops(self, names: set[str]) -> list[int]:
        """Numbers of the top-level scans that make log-probs of the weight, or values of the sites `names`."""
        wanted = {id(atom) for atom, _ in self.weighted()}
        wanted |= {id(self.trace.choices[name]) for name in names}
        return [
            i
            for i, eqn in enumerate(self.closed.jaxpr.eqns)
            if eqn.primitive.name == "scan" and any(id(v) in wanted for v in eqn.outvars)
        ]


def run(
    program: ppl.Program,
    proposal: ppl.Program | None,
    key: Array,
    args: tuple[Any, ...],
    *,
    num_particles: int,
    scheme: Callable[[Array, Array], Array],
    policy: Callable[[Array, Array], Any],
    batch_size: int | None,
    history: str,
    retained: dict[str, Array] | None = None,
) -> dict[str, Any]:
    """Run the particle method; returns the fields of an `SMCResult`. `retained` choices are those of particle 0."""
    run_key, resample_key = jax.random.split(key)
    keys = [lane_keys(k, num_particles) for k in jax.random.split(run_key)]
    is_retained = jnp.arange(num_particles) == 0
    kept = dict(retained or {})

    def simulate(program: ppl.Program, forced: set[str]) -> Callable[..., ppl.Trace]:
        """Sites in `forced` take the proposal's values; others are drawn, or kept in lane 0."""

        def fn(
            key: Array, keep: Array, kept: dict[str, Array], given: dict[str, Array]
        ) -> ppl.Trace:
            if given:
                return program.propose(key, given, None, *args)
            return program.propose(key, kept, keep if kept else None, *args)

        return fn

    single = (keys[0][0], is_retained[0], kept)
    guide = None
    given: dict[str, Any] = {}
    if proposal is not None:
        guide = _Run(simulate(proposal, set()), (*single, {}))
        _check_proposal(guide.shapes, proposal)
        guide.signs = dict.fromkeys(guide.shapes.choices, -1.0)
        given = dict(guide.shapes.choices)
    model = _Run(simulate(program, set(given)), (*single, given))
    model.signs = {
        name: 1.0
        for name, info in model.shapes.sites.items()
        if name in model.shapes.log_probs and (info.kind != "latent" or name in given)
    }

    engine = _Engine(num_particles, resample_key, scheme, policy, batch_size, history)
    engine.run(model, guide, keys, is_retained, kept)
    return engine.result(model)


class _Engine:
    """The weights and records of a run, and the order of its segments."""

    def __init__(
        self,
        num_particles: int,
        key: Array,
        scheme: Callable[[Array, Array], Array],
        policy: Callable[[Array, Array], Any],
        batch_size: int | None,
        history: str,
    ) -> None:
        self.num_particles, self.key = num_particles, key
        self.scheme, self.policy, self.history = scheme, policy, history
        self.over_lanes = lambda fn, axes: over_lanes(fn, batch_size, axes=axes)
        self.log_weights = uniform(num_particles)
        self.pending: Array | None = None
        self.num_events = 0
        self.records: list[dict[str, Array]] = []

    def run(
        self,
        model: _Run,
        guide: _Run | None,
        keys: list[Array],
        is_retained: Array,
        kept: dict[str, Array],
    ) -> None:
        start = lambda run, key: self._start(run, key, is_retained, kept)
        self.machine = start(model, keys[0])
        proposer = None if guide is None else start(guide, keys[1])
        pairs = _pair(model, guide)
        for model_loop, guide_loop, fixed in pairs:
            segments = []
            if proposer is not None and guide is not None:
                stop = guide_loop if guide_loop is not None else len(guide.closed.jaxpr.eqns)
                segments.append((proposer, guide, stop))
                self._advance(segments)
                _hand_over(guide, proposer, model, self.machine)
                segments = []
            segments.append((self.machine, model, model_loop))
            self._advance(segments)
            self._weigh()
            self._loop(model, model_loop, guide, guide_loop, fixed, proposer)
        rest = []
        if proposer is not None and guide is not None:
            self._advance([(proposer, guide, len(guide.closed.jaxpr.eqns))])
            _hand_over(guide, proposer, model, self.machine)
        rest.append((self.machine, model, len(model.closed.jaxpr.eqns)))
        self._advance(rest)
        self._weigh()

    def _start(self, run: _Run, key: Array, is_retained: Array, kept: dict[str, Array]) -> Machine:
        jaxpr = run.closed.jaxpr
        inputs = [key, is_retained, *jax.tree.leaves(kept)]
        is_lane = [True, True, *[False] * len(jax.tree.leaves(kept))]
        known = len(inputs)
        # The proposal's values are handed over when they are known.
        machine = Machine.start(
            ClosedJaxpr(jaxpr, run.closed.consts),
            [*inputs, *[None] * (len(jaxpr.invars) - known)],
            [*is_lane, *[True] * (len(jaxpr.invars) - known)],
            set(),
        )
        for v in jaxpr.invars[known:]:
            machine.env.pop(v)
        loops = run.loops(set()) if self.history != "full" else []
        in_loops = {v for i in loops for v in jaxpr.eqns[i].outvars}
        machine.keep = {
            v for v in jaxpr.outvars if not isinstance(v, Literal) and v not in in_loops
        }
        constants = [
            sign * jnp.sum(atom.val if isinstance(atom, Literal) else machine.env[atom])
            for atom, sign in run.weighted()
            if isinstance(atom, Literal) or atom in jaxpr.constvars
        ]
        if constants:
            self._add(sum(constants, jnp.zeros(())))
        return machine

    def _add(self, log_potential: Array) -> None:
        self.pending = log_potential if self.pending is None else self.pending + log_potential

    def _advance(self, segments: list[tuple[Machine, _Run, int]]) -> None:
        """Run straight code and collect its weights."""
        for machine, run, stop in segments:
            _check_known(machine, run, stop)
            before = set(machine.env)
            weighted = {id(a): s for a, s in run.weighted()}
            keep = machine.keep
            machine.keep = keep | {a for a, _ in run.weighted() if not isinstance(a, Literal)}
            defined = machine.run_to(stop, self.over_lanes)
            for v in defined:
                if id(v) in weighted and v not in before:
                    x = machine.env[v]
                    axes = tuple(range(1 if machine.is_lane(v) else 0, jnp.ndim(x)))
                    self._add(weighted[id(v)] * jnp.sum(x, axes))
            machine.keep = keep
            machine._forget()

    def _weigh(self) -> None:
        """Use the weights collected since the last time, if there are any."""
        if self.pending is None:
            return
        potentials = jnp.broadcast_to(self.pending, (self.num_particles,))
        self.pending = None
        weights = reweight(self.log_weights, potentials)
        self.log_weights = weights.log_weights
        identity = jnp.arange(self.num_particles, dtype=jnp.int32)
        self.records.append(
            {
                "increments": weights.increment[None],
                "ess": weights.ess[None],
                "is_resampled": jnp.zeros(1, bool),
                "ancestors": identity[None],
            }
        )

    def _loop(
        self,
        model: _Run,
        model_loop: int,
        guide: _Run | None,
        guide_loop: int | None,
        fixed: dict[Any, str],
        proposer: Machine | None,
    ) -> None:
        target = Loop(self.machine, model.closed.jaxpr.eqns[model_loop], fixed)
        loops = {"model": target}
        outputs_of = {"model": _signed(model, target)}
        made: dict[str, int] = {}
        if guide is not None and guide_loop is not None and proposer is not None:
            loops["guide"] = Loop(proposer, guide.closed.jaxpr.eqns[guide_loop], {})
            outputs_of["guide"] = _signed(guide, loops["guide"])
            made = {
                name: loops["guide"].ys_out.index(guide.trace.choices[name])
                for name in fixed.values()
            }
        wanted = {name: _wanted(loop, self.history) for name, loop in loops.items()}
        first, base_key = self.num_events, self.key

        def lane(state: Any, shared: Any, t: Array) -> Any:
            state, outs, given = dict(state), {}, {}
            if "guide" in loops:
                state["guide"], out = loops["guide"].step(state["guide"], shared["guide"], t, {})
                outs["guide"] = out
                given = {name: out[i] for name, i in made.items()}
            state["model"], outs["model"] = target.step(state["model"], shared["model"], t, given)
            total = sum(
                (
                    sign * jnp.sum(outs[name][i])
                    for name, signed in outputs_of.items()
                    for i, sign in signed.items()
                ),
                jnp.zeros(()),
            )
            return state, total, {n: {i: outs[n][i] for i in w} for n, w in wanted.items()}

        move = self.over_lanes(lane, (0, None, None))

        def step(carry: Any, inputs: Any) -> Any:
            state, log_weights = carry
            t, shared = inputs
            key = jax.random.fold_in(base_key, first + t)
            decision = self.policy(first + t, log_weights)
            chosen = resample(key, state, log_weights, self.scheme, decision)
            state, potentials, kept = move(chosen.particles, shared, t)
            weights = reweight(chosen.log_weights, potentials)
            record = {
                "increments": weights.increment,
                "ess": weights.ess,
                "is_resampled": chosen.is_resampled,
            }
            if self.history != "none":
                record["ancestors"] = chosen.ancestors
            return (state, weights.log_weights), (record, kept)

        state = {name: loop.initial(self.num_particles) for name, loop in loops.items()}
        shared = {name: loop.shared_xs() for name, loop in loops.items()}
        steps = jnp.arange(target.length, dtype=jnp.int32)
        (state, self.log_weights), (record, kept) = jax.lax.scan(
            step, (state, self.log_weights), (steps, shared)
        )
        self.num_events += target.length
        self.records.append(record)
        if any(wanted.values()):
            kept = follow(kept, lineages(record["ancestors"]))
        for name, loop in loops.items():
            loop.finish(state[name], kept[name])

    def result(self, model: _Run) -> dict[str, Any]:
        """The fields of an `SMCResult`."""
        broadcast = lambda x: jnp.broadcast_to(x, (self.num_particles, *jnp.shape(x)))
        env = self.machine.env

        def value(atom: Any) -> Any:
            if isinstance(atom, Literal):
                return broadcast(atom.val)
            if atom not in env:
                return None
            return env[atom] if self.machine.is_lane(atom) else broadcast(env[atom])

        join = lambda name: jnp.concatenate([r[name] for r in self.records if name in r])
        trace = jax.tree.map(
            value, model.trace, is_leaf=lambda x: not isinstance(x, ppl.Trace | dict)
        )
        choices = {name: x for name, x in trace.choices.items() if x is not None}
        has_ancestors = all("ancestors" in r for r in self.records)
        return {
            "particles": choices,
            "log_weights": self.log_weights,
            "increments": join("increments"),
            "ess": join("ess"),
            "is_resampled": join("is_resampled"),
            "ancestors": join("ancestors") if has_ancestors else None,
            "paths": None,
        }


def _signed(run: _Run, loop: Loop) -> dict[int, float]:
    """Outputs of a loop's step that are log-probs of the weight, with their signs."""
    signs = {id(atom): sign for atom, sign in run.weighted()}
    return {i: signs[id(v)] for i, v in enumerate(loop.ys_out) if id(v) in signs}


def _wanted(loop: Loop, history: str) -> list[int]:
    """Stacked outputs of a loop that are needed after it."""
    live = set(loop.machine.keep)
    for eqn in loop.machine.closed.jaxpr.eqns[loop.machine.position + 1 :]:
        live.update(v for v in eqn.invars if not isinstance(v, Literal))
    wanted = [i for i, v in enumerate(loop.ys_out) if v in live]
    if wanted and history == "none":
        raise ValueError(
            "smc: the program uses the stacked values of a scan after it, which needs the particles' paths. Use "
            "history='full'."
        )
    return wanted


def _pair(model: _Run, guide: _Run | None) -> list[tuple[int, int | None, dict[Any, str]]]:
    """Loops of the model, each with the loop of the proposal that makes its sites step by step."""
    inputs = _inputs(model) if guide is not None else {}
    pairs = []
    for number in model.loops(set()):
        loop = model.closed.jaxpr.eqns[number]
        fixed, partner = {}, None
        if guide is not None:
            makers = {name: _maker(guide, name) for name, v in inputs.items() if v in loop.invars}
            makers = {name: i for name, i in makers.items() if i is not None}
            if len(set(makers.values())) == 1:
                partner = next(iter(makers.values()))
                length = guide.closed.jaxpr.eqns[partner].params["length"]
                if length != loop.params["length"]:
                    raise ValueError(
                        f"smc: the proposal's scan over {sorted(makers)} has {length} steps, the model's "
                        f"{loop.params['length']}. Give both the same number of steps."
                    )
                fixed = {inputs[name]: name for name in makers}
        pairs.append((number, partner, fixed))
    return pairs


def _maker(guide: _Run, name: str) -> int | None:
    """The top-level scan of the proposal that makes site `name`."""
    atom = guide.trace.choices[name]
    for i, eqn in enumerate(guide.closed.jaxpr.eqns):
        if eqn.primitive.name == "scan" and any(v is atom for v in eqn.outvars):
            return i
    return None


def _inputs(model: _Run) -> dict[str, Any]:
    """The input variables of the model that take the proposal's values, by site."""
    names = sorted(name for name in model.shapes.choices if name in model.signs)
    return dict(zip(names, model.closed.jaxpr.invars[-len(names) :], strict=True)) if names else {}


def _hand_over(guide: _Run, proposer: Machine, model: _Run, machine: Machine) -> None:
    """Give the model the proposal's values that are known by now."""
    for name, v in _inputs(model).items():
        atom = guide.trace.choices[name]
        if v not in machine.env and not isinstance(atom, Literal) and atom in proposer.env:
            machine.env[v] = proposer.env[atom]


def _check_known(machine: Machine, run: _Run, stop: int) -> None:
    names = {v: name for name, v in _inputs(run).items()} if run.signs else {}
    for eqn in run.closed.jaxpr.eqns[machine.position : stop]:
        for v in eqn.invars:
            if not isinstance(v, Literal) and v in names and v not in machine.env:
                raise ValueError(
                    f"smc: the model needs site '{names[v]}' before the proposal draws it. Draw the proposal's sites in the "
                    "model's order."
                )


def _check_proposal(trace: ppl.Trace, proposal: ppl.Program) -> None:
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
