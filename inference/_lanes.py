"""Run a traced program in many lanes at once, stopping at its loops: the program side of the particle engine.

Input: a program traced to a jaxpr whose first input is a random key. Every value that depends on the key differs between
lanes (particles); all others are shared and computed once. The jaxpr is cut at top-level scans that hold sites, so that
particles can be weighed and resampled between their steps. Nothing of the user's code is run again.

Invariants: a lane's values move together when lanes are resampled; random keys never move.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal

from ..ppl._compat import bind, scan_counts

Array = jax.Array
OverLanes = Callable[..., Callable[..., Any]]


@dataclasses.dataclass
class Machine:
    """A traced program on its way.

    Attributes:
        closed: the traced program.
        env: values of the variables met so far that are still needed.
        lanes: variables whose value has a leading particle axis.
        keep: variables that must survive to the end.
    """

    closed: ClosedJaxpr
    env: dict[Any, Any]
    lanes: set[Any]
    keep: set[Any]
    position: int = 0

    @classmethod
    def start(
        cls, closed: ClosedJaxpr, inputs: Sequence[Any], is_lane: Sequence[bool], keep: set[Any]
    ) -> Machine:
        """A machine before its first equation; inputs marked in `is_lane` have a leading particle axis."""
        jaxpr = closed.jaxpr
        env = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        env.update(zip(jaxpr.invars, inputs, strict=True))
        lanes = {v for v, flag in zip(jaxpr.invars, is_lane, strict=True) if flag}
        return cls(closed, env, lanes, keep)

    def value(self, atom: Any) -> Any:
        """The current value of a variable or literal."""
        return atom.val if isinstance(atom, Literal) else self.env[atom]

    def is_lane(self, atom: Any) -> bool:
        """Whether the value of `atom` has a particle axis."""
        return not isinstance(atom, Literal) and atom in self.lanes

    def live(self, position: int) -> set[Any]:
        """Variables known by now that equations from `position` on, or the results, need."""
        needed = set(self.keep)
        for eqn in self.closed.jaxpr.eqns[position:]:
            needed.update(v for v in eqn.invars if not isinstance(v, Literal))
        return needed & self.env.keys()

    def run_to(self, stop: int, over_lanes: OverLanes) -> list[Any]:
        """Run the equations up to number `stop`; returns the variables that they defined."""
        eqns = self.closed.jaxpr.eqns[self.position : stop]
        self.position = stop
        ours = []
        for eqn in eqns:
            if any(self.is_lane(v) for v in eqn.invars):
                ours.append(eqn)
                self.lanes.update(eqn.outvars)
            else:
                outs = bind(eqn, [self.value(v) for v in eqn.invars])
                self.env.update(zip(eqn.outvars, outs, strict=True))
        defined = [v for eqn in ours for v in eqn.outvars]
        inner = set(defined)
        inputs = list(
            dict.fromkeys(v for e in ours for v in e.invars if self.is_lane(v) and v not in inner)
        )

        def lane(values: list[Any]) -> list[Any]:
            env = dict(zip(inputs, values, strict=True))
            read = lambda v: env[v] if v in env else self.value(v)  # noqa: B023
            for eqn in ours:
                args = [v.val if isinstance(v, Literal) else read(v) for v in eqn.invars]
                env.update(zip(eqn.outvars, bind(eqn, args), strict=True))
            return [env[v] for v in defined]

        if ours:
            outs = over_lanes(lane, axes=(0,))([self.env[v] for v in inputs])
            self.env.update(zip(defined, outs, strict=True))
        self._forget()
        return [v for eqn in eqns for v in eqn.outvars]

    def _forget(self) -> None:
        live = self.live(self.position)
        self.env = {v: x for v, x in self.env.items() if v in live}

    def moving(self) -> list[Any]:
        """Variables that have to move when lanes are resampled, in a fixed order."""
        return [v for v in self.env if v in self.lanes]


@dataclasses.dataclass
class Loop:
    """The scan at which a machine stands.

    Attributes:
        machine: the machine.
        eqn: the scan equation.
        fixed: substitutes for stacked inputs that are made step by step elsewhere, variable -> key in `given`.
    """

    machine: Machine
    eqn: Any
    fixed: dict[Any, str]

    def __post_init__(self) -> None:
        num_consts, num_carry = scan_counts(self.eqn.params)
        self.num_carry = num_carry
        self.consts = self.eqn.invars[:num_consts]
        self.init = self.eqn.invars[num_consts : num_consts + num_carry]
        self.xs = self.eqn.invars[num_consts + num_carry :]
        self.carry_out = self.eqn.outvars[:num_carry]
        self.ys_out = self.eqn.outvars[num_carry:]
        self.body = self.eqn.params["jaxpr"]
        self.length = self.eqn.params["length"]
        if self.eqn.params["reverse"]:
            raise ValueError("A scan with sites that runs backwards cannot be filtered.")

    def initial(self, num_particles: int) -> dict[str, Any]:
        """What moves with the particles: lane constants, stacked lane inputs, the carry, and what later equations need."""
        m = self.machine
        broadcast = lambda x: jnp.broadcast_to(x, (num_particles, *jnp.shape(x)))
        consts = {i: m.value(v) for i, v in enumerate(self.consts) if m.is_lane(v)}
        xs = {i: m.value(v) for i, v in enumerate(self.xs) if m.is_lane(v) and v not in self.fixed}
        carry = [m.value(v) if m.is_lane(v) else broadcast(m.value(v)) for v in self.init]
        after = {i: m.env[v] for i, v in enumerate(self._waiting())}
        return {"consts": consts, "xs": xs, "carry": carry, "after": after}

    def _waiting(self) -> list[Any]:
        live = self.machine.live(self.machine.position + 1)
        return [v for v in self.machine.moving() if v in live]

    def shared_xs(self) -> dict[int, Any]:
        """Stacked inputs without a particle axis, to be scanned over."""
        m = self.machine
        return {
            i: m.value(v) for i, v in enumerate(self.xs) if not m.is_lane(v) and v not in self.fixed
        }

    def step(
        self, state: dict[str, Any], shared: dict[int, Any], t: Array, given: dict[str, Any]
    ) -> tuple[dict[str, Any], list[Any]]:
        """One step of one lane: `state` without its particle axis; returns the new state and the step's outputs."""
        m = self.machine
        consts = [
            state["consts"].get(i, None if m.is_lane(v) else m.value(v))
            for i, v in enumerate(self.consts)
        ]
        xs = []
        for i, v in enumerate(self.xs):
            if v in self.fixed:
                xs.append(given[self.fixed[v]])
            elif i in shared:
                xs.append(shared[i])
            else:
                xs.append(jax.lax.dynamic_index_in_dim(state["xs"][i], t, keepdims=False))
        outs = run_jaxpr(self.body, [*consts, *state["carry"], *xs])
        return {**state, "carry": outs[: self.num_carry]}, outs[self.num_carry :]

    def finish(self, state: dict[str, Any], outputs: dict[int, Any]) -> None:
        """Put the loop's results into the machine: `outputs` are stacked outputs with the particle axis first."""
        m = self.machine
        for v, x in zip(self._waiting(), state["after"].values(), strict=True):
            m.env[v] = x
        m.env.update(zip(self.carry_out, state["carry"], strict=True))
        m.env.update({self.ys_out[i]: x for i, x in outputs.items()})
        m.lanes.update(self.eqn.outvars)
        m.position += 1
        m._forget()


def run_jaxpr(closed: ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
    """Evaluate a closed jaxpr."""
    return jax.extend.core.jaxpr_as_fun(closed)(*inputs)
