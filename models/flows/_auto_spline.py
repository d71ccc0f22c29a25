"""A flow as the guide of a whole model."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import PyTree
from numpyro.infer import init_to_median
from numpyro.infer.autoguide import AutoContinuous

from ...inference.flows import NeuralSplineFlow, affine
from ...ppl._types import ModelFn

_INIT_SCALE = 0.1  # as of NumPyro's Normal guides


class AutoSpline(AutoContinuous):
    """A guide of all continuous sites of a model: a `NeuralSplineFlow` on their unconstrained values, side by side.

    It begins as a Normal of standard deviation 0.1 around the place where `init_loc_fn` starts. Its parameters are "auto_nets"
    (the weights of networks, a module), "auto_loc" and "auto_scale" (of the last step, arrays), so that rates can be told apart.

    Args:
        model: a program whose latent sites are continuous.
        prefix: of the names of its parameters and of its site.
        init_loc_fn: NumPyro's; where to start.
        options: of `NeuralSplineFlow`: `num_layers`, `num_bins`, `width`, `depth`.
    """

    def __init__(
        self,
        model: ModelFn,
        *,
        prefix: str = "auto",
        init_loc_fn: object = init_to_median(num_samples=15),  # noqa: B008
        **options: int,
    ) -> None:
        self._options = options
        super().__init__(model, prefix=prefix, init_loc_fn=init_loc_fn)

    def get_base_dist(self) -> dist.Distribution:
        """The standard Normal."""
        return dist.Normal(jnp.zeros(self.latent_dim), 1.0).to_event(1)

    def _get_posterior(self) -> dist.Distribution:
        make = lambda key: NeuralSplineFlow(self.latent_dim, key=key, **self._options)
        arrays: PyTree = numpyro.param(
            f"{self.prefix}_nets", lambda key: eqx.filter(make(key).nets, eqx.is_inexact_array)
        )
        shape = eqx.filter_eval_shape(make, jax.random.key(0))
        flow = eqx.tree_at(lambda flow: flow.nets, shape, eqx.combine(arrays, shape.nets))
        loc: Any = numpyro.param(f"{self.prefix}_loc", self._init_latent)
        scale: Any = numpyro.param(
            f"{self.prefix}_scale",
            jnp.full(self.latent_dim, _INIT_SCALE),
            constraint=dist.constraints.softplus_positive,
        )
        base = self.get_base_dist()
        return dist.TransformedDistribution(base, [*flow.couplings(), affine(loc, scale)])
