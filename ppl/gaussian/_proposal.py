"""A proposal for particles: normal states given where the particle was and what is observed in this step, by Kalman's update.

In each step of a scan the normal sites are integrated as in `_integrator.py` without making a statement, the observations that
are normal given them condition the belief, and the sites are drawn from it. All else is drawn from its own law.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jaxtyping import PyTree

from .._compat import CALLS, CUSTOM, ClosedJaxpr, Equation, bind, scan_counts
from .._precision import full_precision
from ..jaxprs import Interpreter, called
from ..traces import scan
from ._arranged import flat, unflat
from ._collector import Collector
from ._forms import Form, is_certain
from ._integrator import Emit, Integrator, tried
from ._laws import JointNormal, made_plain
from ._lift import Statement, holds_statement, statement_p
from ._readings import loc_of
from .beliefs import Noise, lower

Array = jax.Array


class Proposer(Interpreter):
    """A run of a lifted program that draws its sites.

    Args:
        label: for refusals.
        closed: the program, or the body of a scan.
        args: its inputs.
        approximation: of means that are not affine; None: they are refused.
        values: of sites that are drawn already.
    """

    def __init__(
        self,
        label: str,
        closed: ClosedJaxpr,
        args: Sequence[PyTree],
        approximation: str | None,
        values: dict[str, Array] | None = None,
    ) -> None:
        super().__init__(closed, args)
        self.label, self.approximation, self.values = label, approximation, values

    def all(self) -> list[PyTree]:
        """The program's outputs, after all of its statements."""
        self.run(self.closed.jaxpr.eqns)
        return [self.read(v) for v in self.closed.jaxpr.outvars]

    def results(self, eqn: Equation, args: list[PyTree]) -> list[PyTree]:
        if eqn.primitive is statement_p:
            return [self._value(*eqn.params["statement"].read(args[:-1]))]
        if not holds_statement(eqn):
            return bind(eqn, args)
        if eqn.primitive.name == "scan" and self.values is None:
            return self._scan(eqn, args)
        if eqn.primitive.name in CALLS and eqn.primitive.name not in CUSTOM:
            return Proposer(self.label, called(eqn), args, self.approximation, self.values).all()
        raise ValueError(
            f"{self.label}: statements stand in a {eqn.primitive.name} inside of a step or a branch, where it is not known what "
            "to propose. Write the proposal as a program of its own."
        )

    def _value(self, statement: Statement, args: list[PyTree]) -> PyTree:
        if statement.treedef is None:
            return args[0]
        if statement.is_observed:
            return args[-2] if statement.has_scale else args[-1]
        if self.values is not None and statement.infer.get("imputed"):
            return jnp.broadcast_to(statement.law(args).mean, statement.aval.shape)
        if self.values is not None:
            return self.values[statement.name]
        return _drawn(statement, statement.law(args), {})

    def _scan(self, eqn: Equation, args: list[PyTree]) -> list[PyTree]:
        body: ClosedJaxpr = eqn.params["jaxpr"]
        num_consts, num_carry = scan_counts(eqn.params)
        consts, init = args[:num_consts], args[num_consts : num_consts + num_carry]

        def step(carry: list[PyTree], x: list[PyTree]) -> tuple[list[PyTree], list[PyTree]]:
            given = [*consts, *carry, *x]
            values = _proposed(self.label, body, given, self.approximation)
            outs = Proposer(self.label, body, given, self.approximation, values).all()
            return outs[:num_carry], outs[num_carry:]

        start = [jnp.asarray(x) for x in init]
        carry, ys = scan(step, start, args[num_consts + num_carry :], eqn.params["length"])
        return [*carry, *ys]


def _proposed(
    label: str, body: ClosedJaxpr, args: list[PyTree], approximation: str | None
) -> dict[str, Array]:
    """The sites of a step: normal ones from their law given the step's data, others from their own."""
    emit = Emit(approximation=approximation, collector=Collector)
    dry = emit._replace(is_dry=True)
    _, joint = tried(lambda joint: _Updated(label, joint, dry), body, args)
    updated = _Updated(label, joint, emit)
    updated.settled(updated.run(body, args, [False] * len(body.jaxpr.outvars)))
    return updated.values | updated.draws()


class _Updated(Integrator):
    """The belief of a step's normal sites given its observations. Draws the other sites.

    Attributes:
        values: of the other sites.
        sites: the normal ones: statement, law with any mean.
    """

    def __init__(self, label: str, joint: set[str], emit: Emit) -> None:
        super().__init__(label, (), joint, emit)
        self.values: dict[str, Array] = {}
        self.sites: dict[str, tuple[Statement, PyTree]] = {}
        self.kept: dict[str, PyTree] = {}  # site -> form; open, so that it follows the basis
        self.open.append((self.kept, set()))

    def _statement(self, statement: Statement, args: list[PyTree]) -> PyTree:
        if statement.treedef is None:
            return args[0]
        if statement.is_observed:
            try:
                return super()._statement(statement, args)
            except ValueError:  # no normal law with an affine mean: it has no part in the proposal
                obs = args[-2] if statement.has_scale else args[-1]
                return (
                    obs
                    if is_certain(obs)
                    else jnp.zeros(statement.aval.shape, statement.aval.dtype)
                )
        leaves = args[: statement.treedef.num_leaves]
        if statement.infer.get("imputed"):  # missing cells, which the model draws
            return super()._statement(statement, args)
        if loc_of(statement.treedef) is not None:
            self.names = (*self.names, statement.name)
            value = super()._statement(statement, args)
            fn = statement.law([x.const if isinstance(x, Form) else x for x in leaves])
            self.sites[statement.name] = statement, fn
            self.kept[statement.name] = value
            self.open[0][1].add(statement.name)
            return self.kept[statement.name]
        if not all(map(is_certain, leaves)):
            raise ValueError(
                f"Site '{statement.name}': {self.label} proposes normal sites; the law of this one depends on such sites of the "
                "same step and is not normal. Write the proposal as a program of its own."
            )
        fn = statement.law(leaves)
        self.values[statement.name] = _drawn(statement, fn, statement.infer, self.emit.is_dry)
        return self.values[statement.name]

    def _made(self, statement: Statement, fn: Callable[..., PyTree], obs: object) -> PyTree:
        return (
            jnp.zeros(statement.aval.shape, statement.aval.dtype)
            if obs is None
            else jnp.asarray(obs)
        )

    @full_precision
    def draws(self) -> dict[str, Array]:
        """The normal sites, each given those before it: the root of their joint law is triangular."""
        if not self.sites:
            return {}
        assert self.belief is not None
        forms = [self.kept[name] for name in self.sites]
        law = self.law_of(forms)
        root, at = lower(law.root), 0
        steps: list[Array] = []  # of the sites before, whitened
        found = {}
        for (name, (statement, fn)), form in zip(self.sites.items(), forms, strict=True):
            rows, shape = form.rows, form.const.shape
            size = flat(form.const, rows).shape[-1]
            own = root[..., at : at + size, at : at + size]
            mean = law.mean[..., at : at + size]
            if steps:
                before = jnp.concatenate(steps, -1)
                mean = mean + (root[..., at : at + size, :at] @ before[..., None])[..., 0]
            nothing = jnp.zeros((*mean.shape, 1), mean.dtype)
            noise = Noise(own[..., None, :, :])
            joint = JointNormal(unflat(mean, rows, shape), nothing, noise, None, rows)
            plain, dropped = made_plain(joint, fn)
            with statement.around(None, dropped):
                value = jnp.asarray(numpyro.sample(name, plain))
            away = flat(value, rows) - mean
            steps.append(
                jax.scipy.linalg.solve_triangular(own, away[..., None], lower=True)[..., 0]
            )
            found[name], at = value, at + size
        return found


def _drawn(statement: Statement, fn: Any, infer: dict[str, PyTree], is_dry: bool = False) -> Array:
    """A site from its own law."""
    if is_dry:
        return jnp.zeros(statement.aval.shape, statement.aval.dtype)
    with statement.around(None):
        return jnp.asarray(numpyro.sample(statement.name, fn, infer=infer))
