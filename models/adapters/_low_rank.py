"""Low-rank adapters: what is learned beside a linear layer that stays as it is.

The trained network is held outside of the parameters, by identity: it is no leaf, so that no optimiser moves it, keeps a state
for it or copies it, and the reference is that very object.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ...ppl._calls import checked_call
from ...ppl._checks import check_counts
from ...ppl._compat import typed_key
from ...ppl._types import Key

if TYPE_CHECKING:
    from flax import nnx


class Held:
    """An object that a module refers to and does not own: equal to itself alone, without leaves.

    Args:
        value: the object.
    """

    def __init__(self, value: PyTree) -> None:
        self.value = value


class LowRank(eqx.Module):
    """A linear layer W x + b with W + scale B A in the place of W: A [rank, in] drawn, B [out, rank] zero, W and b held.

    Args:
        linear: `equinox.nn.Linear`.
        rank: of B A, at least 1; above min(in, out) nothing is saved.
        key: PRNG key of either kind, for A.
        scale: factor on B A.

    Raises:
        TypeError: another layer than a linear one.

    Reference: Hu et al. 2021, arXiv:2106.09685.
    """

    down: Float[Array, "rank in"]
    up: Float[Array, "out rank"]
    held: Held = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(self, linear: eqx.nn.Linear, rank: int, *, key: Key, scale: float = 1.0) -> None:
        check_counts("LowRank", rank=rank)
        if not isinstance(linear, eqx.nn.Linear):
            raise TypeError(
                f"LowRank: needs an equinox.nn.Linear, got {type(linear).__name__}. Use adapters.adapt for a whole network, of "
                "equinox or of nnx."
            )
        num_out, num_in = linear.weight.shape
        self.down = _drawn(key, (rank, num_in), linear.weight.dtype)
        self.up = jnp.zeros((num_out, rank), linear.weight.dtype)
        self.held, self.scale = Held(linear), scale

    def __call__(self, x: Float[Array, " in"], *, key: Key | None = None) -> Float[Array, " out"]:
        """W x + scale B A x + b."""
        more = self.scale * (self.up @ (self.down @ jnp.atleast_1d(x)))
        plain = self.held.value(x, key=key)
        return plain + more.reshape(plain.shape)


class Adapted(eqx.Module):
    """A network of equinox with `LowRank` in the place of its linear layers; made by `adapt`.

    Attributes:
        layers: the low-rank ones, in the order of the network's leaves; all that is learned.
        held: the network as it was.
    """

    layers: tuple[LowRank, ...]
    held: Held = eqx.field(static=True)

    @property
    def network(self) -> PyTree:
        """The network with its adapters, of the class that it was."""
        layers = iter(self.layers)
        swap = lambda x: next(layers) if isinstance(x, eqx.nn.Linear) else x
        return jax.tree.map(swap, self.held.value, is_leaf=_is_linear)

    def __call__(self, *args: PyTree, **kwargs: PyTree) -> PyTree:
        """What the network returns."""
        return self.network(*args, **kwargs)


@checked_call
def adapt(network: PyTree, rank: int, key: Key, *, scale: float = 1.0) -> Any:
    """The network with a learned W + scale B A in the place of each linear layer's W, and nothing else that is learned.

    Args:
        network: an equinox module with `equinox.nn.Linear` somewhere in it, or one itself; or an `nnx.Module` of Flax with
            `nnx.Linear`. It is not changed.
        rank: of each B A.
        key: PRNG key of either kind.
        scale: factor on each B A.

    Returns:
        A module for `ppl.module`, called as the network is. At first B = 0, so that it returns what the network returns.

    A layer of nnx that stands in several places has one B A in all of them.

    Raises:
        ValueError: a rank below 1.
        TypeError: there is no linear layer, or one of nnx in a tuple, which holds what it holds.

    Reference: Hu et al. 2021, arXiv:2106.09685.
    """
    check_counts("adapt", rank=rank)
    if _is_nnx(network):
        return _adapt_nnx(network, rank, typed_key(key), scale)
    linears = [x for x in jax.tree.leaves(network, is_leaf=_is_linear) if _is_linear(x)]
    if not linears:
        raise _nothing(network)
    keys = jax.random.split(typed_key(key), len(linears))
    layers = [LowRank(x, rank, key=k, scale=scale) for x, k in zip(linears, keys, strict=True)]
    return layers[0] if _is_linear(network) else Adapted(tuple(layers), Held(network))


@checked_call
def without(network: PyTree) -> Any:
    """The network that was adapted: the reference, which shares all its arrays with the adapted one.

    Args:
        network: made by `adapt`, fitted or not; or a `LowRank`.

    Raises:
        TypeError: it has no adapters.
    """
    if isinstance(network, Adapted | LowRank):
        return network.held.value
    if _is_nnx(network):
        return _without_nnx(network)
    raise TypeError(
        f"without: a {type(network).__name__} has no adapters. Give what adapters.adapt returned."
    )


@checked_call
def num_trained(network: PyTree) -> int:
    """How many parameters `ppl.module` learns of a network.

    Args:
        network: an equinox or an nnx module, with adapters or without.
    """
    if _is_nnx(network):
        from flax import nnx

        return sum(x.size for x in jax.tree.leaves(nnx.state(network, nnx.Param)))
    return sum(x.size for x in jax.tree.leaves(eqx.filter(network, eqx.is_inexact_array)))


def _is_linear(x: object) -> bool:
    return isinstance(x, eqx.nn.Linear)


def _is_nnx(x: object) -> bool:
    return any(c.__module__.startswith("flax.nnx") for c in type(x).__mro__)


def _drawn(key: Key, shape: tuple[int, int], dtype: Any) -> Array:
    return jax.random.normal(typed_key(key), shape, dtype) / shape[1] ** 0.5


def _nothing(network: PyTree) -> TypeError:
    return TypeError(
        f"adapt: a {type(network).__name__} has no linear layer (equinox.nn.Linear or nnx.Linear) to adapt. Use layers of these "
        "classes, or train the network whole."
    )


@functools.cache
def _nnx_classes() -> tuple[Any, Any]:
    """The low-rank layer of nnx, and the class of variables that are not learned; made when Flax is there."""
    from flax import nnx

    class Frozen(nnx.Variable):
        """A variable that no optimiser moves."""

    class NnxLowRank(nnx.Module):
        """`LowRank` of an `nnx.Linear`."""

        def __init__(self, linear: nnx.Linear, rank: int, key: Array, scale: float) -> None:
            num_in, num_out = linear.kernel.get_value().shape
            self.base, self.scale = linear, scale
            self.down = nnx.Param(_drawn(key, (rank, num_in), linear.kernel.get_value().dtype))
            self.up = nnx.Param(jnp.zeros((num_out, rank), linear.kernel.get_value().dtype))

        def __call__(self, x: Array) -> Array:
            more = (x @ self.down.get_value().T) @ self.up.get_value().T
            return self.base(x) + self.scale * more

    return NnxLowRank, Frozen


def _adapt_nnx(network: Any, rank: int, key: Array, scale: float) -> Any:
    from flax import nnx

    low_rank, frozen = _nnx_classes()
    copy, layers = nnx.clone(network), {}
    nodes = [n for _, n in nnx.iter_graph(copy) if isinstance(n, nnx.Module | list | dict)]
    if isinstance(copy, nnx.Linear):
        layer = low_rank(copy, rank, key, scale)
        _freeze(copy, frozen)
        return layer
    for node in nodes:
        for name, child in list(_children(node)):
            if isinstance(child, nnx.Linear):
                if id(child) not in layers:
                    own = jax.random.fold_in(key, len(layers) + 1)
                    layers[id(child)] = low_rank(child, rank, own, scale)
                _set(node, name, layers[id(child)])
        _freeze(node, frozen)
    linears = [(path, n) for path, n in nnx.iter_graph(copy) if isinstance(n, nnx.Linear)]
    left = [path for path, linear in linears if id(linear) not in layers]
    if left:
        raise TypeError(
            f"adapt: the linear layers at {left} of a {type(network).__name__} stand in a tuple, in which nothing can be "
            "replaced. Put them into an nnx.List."
        )
    if not layers:
        raise _nothing(network)
    return copy


def _without_nnx(network: Any) -> Any:
    from flax import nnx

    low_rank, _ = _nnx_classes()
    copy = nnx.clone(network)
    layers = [node for _, node in nnx.iter_graph(copy) if isinstance(node, low_rank)]
    if not layers:
        raise TypeError(
            f"without: a {type(network).__name__} has no adapters. Give what adapters.adapt returned."
        )
    for layer in layers:
        layer.up.set_value(jnp.zeros_like(layer.up.get_value()))
    return copy


def _children(node: Any) -> Any:
    if isinstance(node, list):
        return enumerate(node)
    return node.items() if isinstance(node, dict) else vars(node).items()


def _set(node: Any, name: Any, value: PyTree) -> None:
    if isinstance(node, list | dict):
        node[name] = value
    else:
        setattr(node, name, value)


def _freeze(node: Any, frozen: Any) -> None:
    """Parameters of a module in place as variables of a class that is not learned."""
    from flax import nnx

    for name, child in list(_children(node)):
        if isinstance(child, nnx.Param):
            _set(node, name, frozen(child.get_value()))
