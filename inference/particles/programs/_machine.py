"""A traced program on its way, for all particles at once, stopping at its loops.

Input: a program traced to a jaxpr whose first input is a random key. What depends on the key differs between
particles; all else is shared and computed once. The jaxpr is cut at top-level scans that hold sites, so that particles can
be weighed and resampled between their steps. Nothing of the user's code is run again.

Invariants: a particle's values move together when particles are resampled; random keys are streams of all and never move.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ....ppl._compat import ClosedJaxpr, Literal, Var, scan_counts
from ....ppl._types import Key
from ....ppl.traces import unlimited
from ..population import Batch, is_key
from ._interpreter import PARTICLE, SHARED, STREAM, Particles, run_closed

Array = jax.Array


@dataclasses.dataclass
class Machine:
    """A traced program on its way.

    Attributes:
        closed: the traced program.
        values: what is known so far and still needed.
        keep: variables that must survive to the end.
        position: number of the next equation.
        slots: variables of particles that belong to the particle's number and stay where they are when particles move.
    """

    closed: ClosedJaxpr
    values: Particles
    keep: set[Any]
    position: int = 0
    slots: tuple[Any, ...] = ()

    @classmethod
    def start(
        cls, closed: ClosedJaxpr, inputs: Sequence[Key], kinds: Sequence[str], num_particles: int
    ) -> Machine:
        """A machine before its first equation; inputs beyond `inputs` are not known yet."""
        return cls(closed, Particles(closed, inputs, kinds, num_particles), set())

    def live(self, position: int) -> set[Var]:
        """Variables that equations from `position` on, or the results, need."""
        needed = set(self.keep)
        for eqn in self.closed.jaxpr.eqns[position:]:
            needed.update(v for v in eqn.invars if not isinstance(v, Literal))
        return needed

    def run_to(self, stop: int) -> list[Var]:
        """Run the equations up to number `stop`; returns the variables that they defined."""
        eqns = self.closed.jaxpr.eqns[self.position : stop]
        self.values.run(eqns)
        self.position = stop
        return [v for eqn in eqns for v in eqn.outvars]

    def forget(self) -> None:
        """Drop what is not needed any more."""
        live = self.live(self.position)
        for v in [v for v in self.values.env if v not in live]:
            del self.values.env[v]

    def moving(self, position: int) -> list[PyTree]:
        """Variables of particles that are needed from `position` on, in a fixed order; keys excepted."""
        live, values = self.live(position), self.values
        return [
            v
            for v in values.env
            if v in live and values.kind(v) == PARTICLE and v not in self.slots
        ]


@dataclasses.dataclass
class Loop:
    """The scan at which a machine stands.

    Attributes:
        machine: the machine.
        eqn: the scan equation.
        made: stacked inputs that are made step by step elsewhere: variable -> site.
    """

    machine: Machine
    eqn: Any
    made: dict[Any, str]

    def __post_init__(self) -> None:
        num_consts, num_carry = scan_counts(self.eqn.params)
        self.num_carry = num_carry
        self.consts = self.eqn.invars[:num_consts]
        self.init = self.eqn.invars[num_consts : num_consts + num_carry]
        self.xs = self.eqn.invars[num_consts + num_carry :]
        self.ys_out = self.eqn.outvars[num_carry:]
        self.body: ClosedJaxpr = self.eqn.params["jaxpr"]
        self.length = self.eqn.params["length"]
        self.waiting = self.machine.moving(self.machine.position + 1)
        # Every loop is handed the values of all sites that have its length. Those not known yet belong to later loops.
        known = self.machine.values.env
        self.unknown = [
            i
            for i, v in enumerate(self.xs)
            if not isinstance(v, Literal) and v not in self.made and v not in known
        ]
        if self.eqn.params["reverse"]:
            raise ValueError(
                "smc: a scan with sites runs backwards (reverse=True), and particles move forwards. Reverse its inputs instead."
            )

    def initial(self) -> dict[str, PyTree]:
        """What moves with the particles: their constants, their stacked inputs, the carry, and what is needed after the loop."""
        values = self.machine.values
        kind = values.kind
        return {
            "consts": {
                i: values.value(v) for i, v in enumerate(self.consts) if kind(v) == PARTICLE
            },
            "xs": {
                i: values.value(v)
                for i, v in enumerate(self.xs)
                if v not in self.made and i not in self.unknown and kind(v) == PARTICLE
            },
            "carry": [values.per_particle(v) for v in self.init],
            "after": [values.value(v) for v in self.waiting],
        }

    def in_slots(self, state: dict[str, PyTree]) -> dict[str, PyTree]:
        """The state of particles that have moved, with what stays in its slot put back."""
        values = self.machine.values
        bound = {i: values.value(v) for i, v in enumerate(self.consts) if v in self.machine.slots}
        return {**state, "consts": {**state["consts"], **bound}}

    def shared_xs(self) -> dict[int, PyTree]:
        """Stacked inputs without a particle axis (streams of keys too), to be scanned over."""
        values = self.machine.values
        return {
            i: values.value(v)
            for i, v in enumerate(self.xs)
            if v not in self.made and i not in self.unknown and values.kind(v) != PARTICLE
        }

    def step(
        self,
        state: dict[str, PyTree],
        shared: dict[int, Array],
        t: Array,
        given: dict[str, Array],
        batch: Batch,
    ) -> tuple[dict[str, PyTree], list[PyTree]]:
        """One step of a batch of particles; returns the new state and the step's outputs, each with a particle axis."""
        outer, num_outer = self.machine.values, len(self.consts) + self.num_carry
        inputs: list[PyTree] = []
        kinds: list[str] = []

        def add(value: PyTree, kind: str) -> None:
            inputs.append(batch.stream(value) if kind == STREAM else value)
            kinds.append(kind)

        for i, v in enumerate(self.consts):
            is_own = i in state["consts"]
            add(
                state["consts"][i] if is_own else outer.value(v),
                PARTICLE if is_own else outer.kind(v),
            )
        for x in state["carry"]:
            add(x, PARTICLE)
        for i, v in enumerate(self.xs):
            aval: Any = self.body.in_avals[num_outer + i]
            if i in self.unknown:
                add(jnp.zeros(aval.shape, aval.dtype), SHARED)
            elif v in self.made:
                name = self.made[v]
                # Choices that are only scored come without the limits of the law that they were drawn from.
                value = given[name] if name in given else unlimited(name, (batch.size, *aval.shape))
                add(value, PARTICLE)
            elif i in shared:
                add(shared[i], STREAM if is_key(shared[i]) else SHARED)
            else:
                add(
                    jax.lax.dynamic_index_in_dim(state["xs"][i], t, axis=1, keepdims=False),
                    PARTICLE,
                )
        outs = run_closed(self.body, inputs, kinds, batch.size)
        return {**state, "carry": outs[: self.num_carry]}, outs[self.num_carry :]

    def finish(self, state: dict[str, PyTree], outputs: dict[int, PyTree]) -> None:
        """Put the loop's results into the machine; `outputs` are stacked outputs, particle axis first."""
        machine, values = self.machine, self.machine.values
        values.set(self.waiting, state["after"], [PARTICLE] * len(self.waiting))
        results = dict(zip(self.eqn.outvars[: self.num_carry], state["carry"], strict=True))
        results.update({self.ys_out[i]: x for i, x in outputs.items()})
        values.set(list(results), list(results.values()), [PARTICLE] * len(results))
        machine.position += 1
        machine.forget()
