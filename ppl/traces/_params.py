"""Parameters live outside programs: a dict of unconstrained arrays that knows its constraints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import ArrayLike, PyTree
from numpyro.distributions import constraints
from numpyro.distributions.constraints import Constraint
from numpyro.primitives import Messenger

from .._compat import Tracer, declared
from .._types import Message, ParamMap

# Names of parameters in order, and their constraints.
type _Static = tuple[tuple[str, ...], _Constraints]


class _Constraints(dict[str, Constraint]):
    """The constraints of a `Params`: static data of a pytree, hence hashable."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple((name, type(c).__name__) for name, c in sorted(self.items())))


@jax.tree_util.register_pytree_with_keys_class
class Params(dict[str, PyTree]):
    """Parameter name -> pytree of unconstrained arrays. A dict and a pytree; `ppl.constrain` maps it to its constraints.

    Args:
        values: unconstrained values by name.
        constraints: NumPyro constraint by name; a name left out is real.
    """

    def __init__(
        self, values: ParamMap | None = None, constraints: Mapping[str, Constraint] | None = None
    ) -> None:
        super().__init__(values or {})
        self.constraints = _Constraints(constraints or {})

    def tree_flatten_with_keys(
        self,
    ) -> tuple[tuple[tuple[object, PyTree], ...], _Static]:
        names = tuple(sorted(self))
        children = tuple((jax.tree_util.DictKey(name), self[name]) for name in names)
        return children, (names, self.constraints)

    def tree_flatten(self) -> tuple[list[PyTree], _Static]:
        names = tuple(sorted(self))
        return [self[name] for name in names], (names, self.constraints)

    @classmethod
    def tree_unflatten(cls, aux: _Static, children: Iterable[PyTree]) -> Params:
        # JAX makes one at every call of a compiled function: without copies, it costs what a plain dict costs.
        names, shared = aux
        params = cls.__new__(cls)
        params.update(zip(names, children, strict=False))
        params.constraints = shared
        return params


def constrain(params: ParamMap) -> dict[str, PyTree]:
    """Map unconstrained parameters to their constraints: `biject_to(constraint)(value)` leaf by leaf.

    Args:
        params: as returned by `objective.init`, or `Fit.params`.

    Returns:
        A plain dict of constrained values with the same leaves.
    """
    known = getattr(params, "constraints", {})
    return {
        name: to_constrained(value, known.get(name, constraints.real))
        for name, value in params.items()
    }


def unconstrain(values: ParamMap, known: Mapping[str, Constraint]) -> Params:
    """The inverse of `constrain`: `Params` that `constrain` maps to `values`.

    Args:
        values: parameter name -> value that satisfies its constraint.
        known: parameter name -> constraint; names that are left out are unconstrained.
    """
    params = {}
    for name, value in values.items():
        transform = dist.transforms.biject_to(known.get(name, constraints.real))
        params[name] = jax.tree.map(lambda x, t=transform: t.inv(x) if _is_array(x) else x, value)
    return Params(params, known)


def to_constrained(value: PyTree, constraint: Constraint) -> PyTree:
    """`value` under `biject_to(constraint)`, leaf by leaf."""
    if constraint is constraints.real:
        return value
    transform = dist.transforms.biject_to(constraint)
    return jax.tree.map(lambda x: transform(x) if _is_array(x) else x, value)


def strong(x: ArrayLike) -> jax.Array:
    """`x` as an array whose type does not bend to its partner's (a weak type would compile a first step twice)."""
    if isinstance(x, Tracer):
        return jax.lax.convert_element_type(x, x.dtype)
    if isinstance(x, jax.Array) and not x.weak_type:
        return x
    # What is known stays known inside of a transformation, so that checks may look at it; from NumPy nothing is compiled.
    with jax.ensure_compile_time_eval():
        return jax.device_put(np.asarray(x, jax.dtypes.canonicalize_dtype(np.result_type(x))))


def check_initial(params: Params) -> Params:
    """Refuse initial values outside their constraint: the inverse transform is not finite there.

    Raises:
        ValueError: naming the parameter.
    """
    for name, value in params.items():
        if not all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(value)):
            raise ValueError(
                f"Parameter '{name}': its initial value is not finite or does not satisfy the constraint "
                f"{params.constraints[name]}. Give an initial value inside the constraint."
            )
    return params


def _is_array(x: object) -> bool:
    return isinstance(x, int | float) or (hasattr(x, "dtype") and hasattr(x, "shape"))


@jax.tree_util.register_pytree_with_keys_class
class Whole(Params):
    """Parameters that are all there are: a program bound to them may not meet another one."""


class BoundParams(Messenger):
    """Give param statements their values from unconstrained parameters; the statement's own constraint applies.

    Raises:
        ValueError: the parameters are `Whole`, and lack the statement's.
    """

    def __init__(self, params: ParamMap) -> None:
        super().__init__()
        self.params = params

    def process_message(self, msg: Message) -> None:
        if msg["type"] != "param" or msg["value"] is not None:
            return
        if msg["name"] in self.params:
            constraint = msg["kwargs"].get("constraint", constraints.real)
            msg["value"] = to_constrained(self.params[msg["name"]], constraint)
        elif isinstance(self.params, Whole) and msg["args"] != (None,):
            # Without a value, `numpyro.module` asks whether there is one.
            raise ValueError(
                f"Parameter '{msg['name']}' has no value among those given, {sorted(self.params)}, and its initial value would "
                "stand in for it. Give all that objective.init(key, *args) has, e.g. {**objective.init(key, *args), **params}; "
                "{} stands for all initial values."
            )


class ParamCollector(Messenger):
    """Remember the value and constraint of every param statement; a name met again gets the value it had."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, PyTree] = {}
        self.constraints: dict[str, Constraint] = {}

    def process_message(self, msg: Message) -> None:
        name = msg["name"] if msg["type"] == "param" else None
        if name not in self.values:
            return
        shapes = [jnp.shape(x) for x in jax.tree.leaves(declared(msg))]
        old = [jnp.shape(x) for x in jax.tree.leaves(self.values[name])]
        constraint = msg["kwargs"].get("constraint", self.constraints[name])
        if (shapes and shapes != old) or str(constraint) != str(self.constraints[name]):
            raise ValueError(
                f"Parameter '{name}' is declared twice, with shapes {old} and {shapes}, constraints {self.constraints[name]} and "
                f"{constraint}. One name is one parameter: declare it alike, or use two names."
            )
        msg["value"] = self.values[name]

    def postprocess_message(self, msg: Message) -> None:
        if msg["type"] == "param" and msg["name"] not in self.values:
            if msg["value"] is None:  # numpyro.module asks first whether the parameter exists
                return
            self.values[msg["name"]] = jax.tree.map(strong, msg["value"])
            self.constraints[msg["name"]] = msg["kwargs"].get("constraint", constraints.real)

    def unconstrained(self) -> Params:
        """What was found, as `Params`."""
        return unconstrain(self.values, self.constraints)
