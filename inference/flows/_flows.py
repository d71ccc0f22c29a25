"""Flows as equinox modules: couplings one after another, then a scale and a place for each coordinate."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, PyTree

from ...ppl._checks import check_counts
from ...ppl._types import Key
from ._couplings import AffineCoupling, Coupling, SplineCoupling
from ._splines import MOST_BINS


def affine(loc: Array, scale: Array) -> dist.transforms.Transform:
    """Scaled and shifted, coordinate by coordinate."""
    transform = dist.transforms.AffineTransform(loc, scale)
    return dist.transforms.IndependentTransform(transform, 1)


def with_zeros_last(net: eqx.nn.MLP) -> eqx.nn.MLP:
    """The network with a last layer of zeros: it gives 0 at first, and learns."""
    last = lambda net: (net.layers[-1].weight, net.layers[-1].bias)
    return eqx.tree_at(last, net, tuple(jnp.zeros_like(x) for x in last(net)))


def check_context(flow: PyTree, context: PyTree) -> None:
    """Refuse a context of another length than the flow's `context_size`."""
    shape = (0,) if context is None else jnp.shape(context)
    if shape[-1:] != (flow.context_size,):
        found = f"length {shape[-1]}" if shape else "no axis"
        raise ValueError(
            f"{type(flow).__name__}: the context has {found}, and the flow was made for "
            f"context_size={flow.context_size}. Pass what it was made for."
        )


class Flow(eqx.Module):
    """Abstract: a standard Normal on R^d through couplings, then scaled and shifted coordinate by coordinate.

    Attributes:
        nets: a network for each coupling.
        loc, log_scale: of the last step, [d].
    """

    nets: list[eqx.nn.MLP]
    loc: Array
    log_scale: Array
    size: int = eqx.field(static=True)
    context_size: int = eqx.field(static=True)

    coupling: eqx.AbstractClassVar[type[Coupling]]

    def __init__(
        self,
        size: int,
        context_size: int,
        num_outputs: int,
        key: Key,
        num_layers: int,
        width: int,
        depth: int,
    ) -> None:
        who = type(self).__name__
        check_counts(who, size=size, width=width)
        check_counts(who, 0, context_size=context_size, num_layers=num_layers, depth=depth)
        self.size, self.context_size = size, context_size
        self.loc, self.log_scale = jnp.zeros(size), jnp.zeros(size)
        keys = jax.random.split(key, num_layers)
        self.nets = [self._net(k, i, num_outputs, width, depth) for i, k in enumerate(keys)]

    def law(self, context: Float[Array, "*batch context"] | None = None) -> dist.Distribution:
        """The distribution, of batch shape that of the context, event shape (d,).

        Raises:
            ValueError: the context has another length than `context_size`.
        """
        check_context(self, context)
        batch = () if context is None else jnp.shape(context)[:-1]
        base = dist.Normal(jnp.zeros((*batch, self.size)), 1.0).to_event(1)
        last = affine(self.loc, jnp.exp(self.log_scale))
        return dist.TransformedDistribution(base, [*self.couplings(context), last])

    def couplings(self, context: Array | None = None) -> list[Coupling]:
        """All steps but the last."""
        return [self.coupling(net, self._kept(i), context) for i, net in enumerate(self.nets)]

    def _kept(self, layer: int) -> np.ndarray:
        return (np.arange(self.size) % 2 == layer % 2) & (self.size > 1)

    def _net(self, key: Key, layer: int, num_outputs: int, width: int, depth: int) -> eqx.nn.MLP:
        kept = int(self._kept(layer).sum())
        num_in, num_out = max(kept + self.context_size, 1), num_outputs * (self.size - kept)
        return with_zeros_last(eqx.nn.MLP(num_in, num_out, width, depth, jax.nn.tanh, key=key))


class RealNVP(Flow):
    """A standard Normal on R^d through affine coupling layers, then scaled and shifted coordinate by coordinate.

    It begins as the standard Normal: the last layers of its networks are zero at first.

    Args:
        size: d, at least 2.
        key: PRNG key of the networks.
        context_size: c, the length of the context; 0 for none.
        num_layers: couplings; coordinates 0, 2, ... and 1, 3, ... are kept in turn.
        width: of the networks' hidden layers, of which there are `depth`.
        depth: see `width`.

    Raises:
        ValueError: there are fewer than two coordinates.

    Reference: Dinh, Sohl-Dickstein and Bengio 2017, arXiv:1605.08803.
    """

    coupling = AffineCoupling

    def __init__(
        self,
        size: int,
        *,
        key: Key,
        context_size: int = 0,
        num_layers: int = 6,
        width: int = 32,
        depth: int = 2,
    ) -> None:
        if size < 2:
            raise ValueError(
                f"RealNVP: size is {size}, but a coupling moves some coordinates by others, so two are needed. Use a Normal, or "
                "NeuralSplineFlow, for a single one."
            )
        super().__init__(size, context_size, 2, key, num_layers, width, depth)


class NeuralSplineFlow(Flow):
    """A standard Normal on R^d through couplings of rational-quadratic splines, then scaled and shifted coordinate by coordinate.

    Beyond five standard deviations its tails are Normal; within, a spline of K bins bends a coordinate in K places, so that
    separate modes take fewer layers than affine couplings do. It begins as the standard Normal.

    Args:
        size: d, at least 1. A single coordinate is moved by splines that know the context only.
        key: PRNG key of the networks.
        context_size: c, the length of the context; 0 for none.
        num_layers: couplings; coordinates 0, 2, ... and 1, 3, ... are kept in turn.
        num_bins: K, 1 to 500.
        width: of the networks' hidden layers, of which there are `depth`.
        depth: see `width`.

    Raises:
        ValueError: a number is impossible.

    Reference: Durkan, Bekasov, Murray and Papamakarios 2019, arXiv:1906.04032, RQ-NSF (C) without its linear layers.
    """

    coupling = SplineCoupling

    def __init__(
        self,
        size: int,
        *,
        key: Key,
        context_size: int = 0,
        num_layers: int = 4,
        num_bins: int = 8,
        width: int = 32,
        depth: int = 2,
    ) -> None:
        if size < 1 or not 1 <= num_bins <= MOST_BINS:
            raise ValueError(
                f"NeuralSplineFlow: size {size} and num_bins {num_bins} are impossible. Ask for one coordinate or more, and for "
                f"1 to {MOST_BINS} bins."
            )
        super().__init__(size, context_size, 3 * num_bins - 1, key, num_layers, width, depth)
