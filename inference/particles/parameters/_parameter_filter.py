"""Filters for given parameters, which particle MCMC and SMC^2 run, and their runs compiled once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .... import ppl
from ....ppl._shared_jit import shared_jit
from ....ppl._types import Args
from ..._arguments import Arguments
from ..engine import FilterOptions, SMCResult, smc
from ..resampling import as_resampling
from ._parameters import Parameters, given, make_parameters

Array = jax.Array


class FilterEstimate(NamedTuple):
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
    args: tuple[PyTree, ...]
    space: Parameters
    options: Mapping[str, Any]

    def __call__(self, key: Array, point: Array) -> FilterEstimate:
        """The parameters at unconstrained coordinates `point` [d]."""
        run_key, choice_key = jax.random.split(key)
        model, guide = given(self.program, self.proposal, self.space.values(point))
        result = smc(model, run_key, *self.args, proposal=guide, **self.options)
        log_prior = self.space.log_prior(point)
        # The first weighing is that of the straight code, where the parameters count as observed.
        increments = result.increments.at[0].add(-log_prior)
        states = one_path(choice_key, result)
        return FilterEstimate(
            log_prior, self.space.log_jacobian(point), increments, result.log_evidence, states
        )


def one_path(key: Array, result: SMCResult) -> dict[str, Array]:
    """A particle by its weight."""
    index = jax.random.categorical(key, result.log_weights)
    return jax.tree.map(lambda x: x[index], result.particles)


@dataclasses.dataclass(frozen=True)
class Task:
    """A method for parameters of a program, before its data.

    Attributes:
        method: who asks, for messages.
        program: the model.
        proposal: of its other latent sites.
        parameters: names of sites.
        options: of `smc`.
        settings: the method's own.
        data: the split of the program's arguments.
    """

    method: str
    program: ppl.Program
    proposal: ppl.Program | None
    parameters: tuple[str, ...]
    options: Mapping[str, Any]
    settings: Any
    data: Arguments

    def filter(self, arrays: list[PyTree]) -> ParameterFilter:
        """The filter for these data."""
        args = self.data.join(arrays)
        return ParameterFilter(self.program, self.proposal, args, self.space(args), self.options)

    def space(self, args: Args) -> Parameters:
        """The parameters.

        Raises:
            ValueError: see `make_parameters`.
        """
        return make_parameters(self.method, self.program, args, self.parameters)


def make_task(
    method: str,
    model: ppl.Program | Callable[..., PyTree],
    args: Args,
    parameters: Sequence[str],
    num_particles: int,
    filter: FilterOptions,
    settings: PyTree,
) -> Task:
    """What `pmmh` and `smc2` are asked for.

    Raises:
        ValueError: a scheme by which the evidence is biased.
    """
    scheme = as_resampling(filter.resampling)
    if not scheme.is_unbiased:
        raise ValueError(
            f"{method}: resampling scheme '{scheme.name}' makes the evidence estimates biased, and the draws with them. Use "
            "'systematic', 'stratified' or another unbiased scheme."
        )
    model = ppl.as_program(model)
    options = {"num_particles": num_particles, **vars(filter)}
    proposal = options.pop("proposal")
    guide = None if proposal is None else ppl.as_program(proposal)
    return Task(method, model, guide, tuple(parameters), options, settings, Arguments(args))


def compiled(run: Callable[..., PyTree], task: Task, args: Args) -> Callable[..., PyTree]:
    """`run(task.settings, filter, *inputs)` as a compiled function of `inputs`, arrays."""
    # Closed over: a program may read its data in Python. As arrays of JAX they are inputs of what is compiled.
    arrays = [jnp.asarray(x) for x in task.data.arrays(args)]
    return shared_jit(lambda *inputs: run(task.settings, task.filter(arrays), *inputs))
