"""Filters for given parameters, which particle MCMC and SMC^2 run, and their runs compiled once.

A compiled run is kept for calls of the same program on data of the same shapes. What the program means can change between calls
(it may read numbers around it), so that calls count as the same only where the traced program is: the text of its jaxpr and
the values of its constants are compared, not the function alone.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .... import ppl
from ....ppl._compat import is_concrete
from ....ppl._foreign import is_of_tracing
from ..._arguments import Arguments, shapes
from ..engine import SMCResult, smc
from ..resampling import as_resampling
from ._parameters import Parameters, given, make_parameters

Array = jax.Array


class Estimate(NamedTuple):
    """What one filter says of parameters theta.

    Attributes:
        log_prior: log p(theta), nats.
        log_jacobian: log |d theta / d u| of the unconstrained coordinates, nats.
        increments: of log p^(data | theta), one per weighing.
        log_joint: log p(theta) p^(data | theta); -inf where all particles were lost.
        states: other latent site -> values of one path.
    """

    log_prior: Array
    log_jacobian: Array
    increments: Array
    log_joint: Array
    states: dict[str, Array]


@dataclasses.dataclass(frozen=True)
class ParameterFilter:
    """`smc` as a function of the parameters.

    Attributes:
        program: the model.
        proposal: of its other latent sites.
        args: the program's arguments.
        space: the parameters.
        options: of `smc`.
    """

    program: ppl.Program
    proposal: ppl.Program | None
    args: tuple[Any, ...]
    space: Parameters
    options: Mapping[str, Any]

    def __call__(self, key: Array, point: Array) -> Estimate:
        """The parameters at unconstrained coordinates `point` [d]."""
        run_key, choice_key = jax.random.split(key)
        model, guide = given(self.program, self.proposal, self.space.values(point))
        result = smc(model, run_key, *self.args, proposal=guide, **self.options)
        log_prior = self.space.log_prior(point)
        # The first weighing is that of the straight code, where the parameters count as observed.
        increments = result.increments.at[0].add(-log_prior)
        states = one_path(choice_key, result)
        return Estimate(
            log_prior, self.space.log_jacobian(point), increments, result.log_evidence, states
        )


def one_path(key: Array, result: SMCResult) -> dict[str, Array]:
    """A particle by its weight."""
    index = jax.random.categorical(key, result.log_weights)
    return jax.tree.map(lambda x: x[index], result.particles)


@dataclasses.dataclass(frozen=True)
class Task:
    """A method for parameters of a program, before its data; two are equal where one compiled run serves both.

    Attributes:
        method: who asks, for messages.
        program: the model.
        proposal: of its other latent sites.
        parameters: names of sites.
        options: of `smc`, as pairs.
        settings: the method's own.
        data: the split of the program's arguments.
        fingerprint: of what the program and the proposal do with data of these shapes; None where that is not known.
    """

    method: str
    program: ppl.Program = dataclasses.field(compare=False)
    proposal: ppl.Program | None = dataclasses.field(compare=False)
    parameters: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]
    settings: Any
    data: Arguments = dataclasses.field(compare=False)
    fingerprint: str | None

    def filter(self, arrays: list[Any]) -> ParameterFilter:
        """The filter for these data."""
        args = self.data.join(arrays)
        return ParameterFilter(
            self.program, self.proposal, args, self.space(args), dict(self.options)
        )

    def space(self, args: tuple[Any, ...]) -> Parameters:
        """The parameters.

        Raises:
            ValueError: see `make_parameters`.
        """
        return make_parameters(self.method, self.program, args, self.parameters)


def make_task(
    method: str,
    model: ppl.Program | Callable[..., Any],
    proposal: ppl.Program | Callable[..., Any] | None,
    args: tuple[Any, ...],
    parameters: Sequence[str],
    options: Mapping[str, Any],
    settings: Any,
) -> Task:
    """What `pmmh` and `smc2` are asked for.

    Raises:
        ValueError: a scheme by which the evidence is biased.
    """
    scheme = as_resampling(options["resampling"])
    if not scheme.is_unbiased:
        raise ValueError(
            f"{method}: resampling scheme '{scheme.name}' makes the evidence estimates biased, and the draws with them. Use "
            "'systematic', 'stratified' or another unbiased scheme."
        )
    model = ppl.as_program(model)
    guide = None if proposal is None else ppl.as_program(proposal)
    data = Arguments(args)
    task = Task(
        method, model, guide, tuple(parameters), tuple(options.items()), settings, data, None
    )
    try:
        hash(task)
    except TypeError:  # a policy or scheme that does not compare
        return task
    programs = [p for p in (model, guide) if p is not None]
    return dataclasses.replace(task, fingerprint=_fingerprint(programs, data, data.arrays(args)))


def compiled(run: Callable[..., Any], task: Task, args: tuple[Any, ...]) -> Callable[..., Any]:
    """`run(task.settings, filter, *inputs)` as a compiled function of `inputs`, arrays."""
    arrays = task.data.arrays(args)
    if task.fingerprint is None:
        # A traced call, or a program that reads its data in Python: they stay where they are.
        return jax.jit(lambda *inputs: run(task.settings, task.filter(arrays), *inputs))
    return functools.partial(_run, run, task, arrays)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(run: Callable[..., Any], task: Task, arrays: list[Array], *inputs: Any) -> Any:
    return run(task.settings, task.filter(arrays), *inputs)


def _fingerprint(programs: list[ppl.Program], data: Arguments, arrays: list[Any]) -> str | None:
    """A digest of the traced programs, of their constants and of the split of their arguments."""
    if not all(is_concrete(x) for x in arrays):
        return None
    digest = hashlib.sha256(repr((data.treedef, data.static, shapes(arrays))).encode())
    for program in programs:
        simulate = lambda key, arrays, p=program: p.simulate(key, *data.join(arrays))
        try:
            closed, result = jax.make_jaxpr(simulate, return_shape=True)(jax.random.key(0), arrays)
        except (TypeError, IndexError) as err:
            if not is_of_tracing(err):
                raise
            return None
        if not all(is_concrete(x) for x in closed.consts):
            return None
        digest.update(f"{program.fn!r} {closed} {jax.tree.structure(result)}".encode())
        for x in closed.consts:
            digest.update(np.asarray(jax.random.key_data(x) if _is_key(x) else x).tobytes())
    return digest.hexdigest()


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
