"""A loop of a model, and the loop of its proposal that makes its sites, advanced step by step together.

Input: machines that stand at their loops. Output of a step: the new state, log-weights by the signs of log-probs, and what is
needed of the step's outputs.

Invariant: a site that the proposal makes is drawn once, and reaches the model in the same step.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ....ppl._compat import Var
from ....ppl.traces import is_limit
from ..population import Batch
from ._machine import Loop, Machine
from ._traced import TracedProgram, check_made, scored_outputs, signed_outputs, wanted_outputs
from ._watching import Watched

Array = jax.Array


class Outputs(NamedTuple):
    """What one step leaves, leaves [particles, ...].

    Attributes:
        log_weights: log-probs with their signs, [particles], nats.
        log_probs: of scored sites, [particles], nats.
        kept: role -> number of output -> value needed after the loop.
        given: choices that the proposal made, and the limits of their laws.
        seen: what resampling looks at, None where it does not.
    """

    log_weights: Array
    log_probs: Array
    kept: dict[str, dict[int, Array]]
    given: dict[str, Array]
    seen: Array | None

    def made(self) -> dict[str, Array]:
        """Choices without the limits of their laws."""
        return {name: x for name, x in self.given.items() if not is_limit(name)}


class LoopPair:
    """The loops, by role.

    Args:
        traced: role ("guide", "model") -> program and its machine, at its loop; without a guide the model draws by itself.
        numbers: role -> number of the loop's equation.
        made: stacked inputs of the model's loop that the proposal makes: variable -> site.
        watched: variables that resampling looks at.
        history: which outputs can be kept.
    """

    def __init__(
        self,
        traced: dict[str, tuple[TracedProgram, Machine]],
        numbers: dict[str, int],
        made: dict[Var, str],
        watched: Watched | None,
        history: str,
    ) -> None:
        self.loops: dict[str, Loop] = {}
        self.signed, self.scored, self.wanted = {}, {}, {}
        for role, number in numbers.items():
            program, machine = traced[role]
            loop = Loop(machine, program.closed.jaxpr.eqns[number], made if role == "model" else {})
            self.loops[role] = loop
            self.signed[role] = signed_outputs(program, loop)
            self.scored[role] = scored_outputs(program, loop)
            self.wanted[role] = wanted_outputs(loop, history)
        self.target = self.loops["model"]
        check_made(traced["model"][0], self.target)
        self.sources: dict[str, int] = {}
        if "guide" in self.loops:
            offered, outputs = traced["guide"][0].offered, self.loops["guide"].ys_out
            self.sources = {name: outputs.index(offered[name]) for name in made.values()}
        self.watched = None if watched is None else self.target.ys_out.index(watched.steps)

    def initial(self) -> dict[str, dict[str, PyTree]]:
        """What moves with particles, by role."""
        return {role: loop.initial() for role, loop in self.loops.items()}

    def shared_xs(self) -> dict[str, dict[int, PyTree]]:
        """Inputs of the steps that all particles share, by role."""
        return {role: loop.shared_xs() for role, loop in self.loops.items()}

    def in_slots(self, state: dict[str, dict[str, PyTree]]) -> dict[str, dict[str, PyTree]]:
        """The state of particles that have moved, with what stays in its slot put back."""
        return {role: loop.in_slots(state[role]) for role, loop in self.loops.items()}

    def step(
        self,
        state: dict[str, dict[str, PyTree]],
        batch: Batch,
        shared: dict[str, dict[int, Array]],
        t: Array,
    ) -> tuple[dict[str, PyTree], Outputs]:
        """One step of a batch of particles."""
        state, outs, given = dict(state), {}, {}
        for role in (role for role in ("guide", "model") if role in self.loops):
            state[role], outs[role] = self.loops[role].step(
                state[role], shared[role], t, given, batch
            )
            if role == "guide":
                given = {name: outs["guide"][i] for name, i in self.sources.items()}
        summed = lambda x: x.reshape(batch.size, -1).sum(1)
        terms = [
            sign * summed(outs[role][i])
            for role in ("model", "guide")
            for i, sign in self.signed.get(role, {}).items()
        ]
        scores = [
            summed(outs[role][i]) for role in ("model", "guide") for i in self.scored.get(role, [])
        ]
        kept = {role: {i: outs[role][i] for i in wanted} for role, wanted in self.wanted.items()}
        seen = None if self.watched is None else outs["model"][self.watched]
        zeros = jnp.zeros(batch.size)
        return state, Outputs(sum(terms, jnp.zeros(())), sum(scores, zeros), kept, given, seen)

    def finish(self, state: dict[str, dict[str, PyTree]], kept: dict[str, PyTree]) -> None:
        """Put results into the machines."""
        for role, loop in self.loops.items():
            loop.finish(state[role], kept[role])
