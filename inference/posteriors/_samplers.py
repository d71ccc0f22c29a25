"""Laws that have a density and no sampler, as Stan's flat priors: whoever runs a program to see its sites needs some draw."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.transforms import biject_to
from numpyro.primitives import Messenger

from ... import ppl
from ...ppl.densities import Eliminated
from ...ppl.language import Program

_RADIUS = 2.0  # of places to look at, as of chains' starts


class _Flat(dist.ImproperUniform):
    """An `ImproperUniform` with draws: uniform on (-2, 2) of the unconstrained scale. They have no density of their own."""

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        transform: Any = biject_to(self.support)
        shape = transform.inverse_shape((*sample_shape, *self.batch_shape, *self.event_shape))
        free = jax.random.uniform(key, shape, jnp.result_type(float), -_RADIUS, _RADIUS)
        return transform(free)


def with_samplers(program: Program) -> Program:
    """The program, which can be run: improper uniform laws have draws, and the density that they had."""
    if isinstance(program, Eliminated):
        return program.rebuilt(with_samplers)

    class _Replaced(Messenger):
        def process_message(self, msg: dict[str, Any]) -> None:
            if msg["type"] == "sample" and msg["value"] is None:
                msg["fn"] = _drawn(msg["fn"])

    @functools.wraps(program)
    def run(*args: Any, **kwargs: Any) -> Any:
        with _Replaced():
            return program.run(*args, **kwargs)

    return ppl.Program(run)


def _drawn(fn: Any) -> Any:
    if isinstance(fn, dist.ImproperUniform):
        return _Flat(fn.support, fn.batch_shape, fn.event_shape)
    if isinstance(fn, dist.Independent):
        return dist.Independent(_drawn(fn.base_dist), fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.ExpandedDistribution):
        return dist.ExpandedDistribution(_drawn(fn.base_dist), fn.batch_shape)
    return fn
