"""Everything that depends on a jax or numpyro version, in one place."""

from __future__ import annotations

import contextlib
import itertools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax.core import Tracer
from jax.extend.core import get_opaque_trace_state

# ArviZ registers numpyro as a lazy module; importing one of its submodules first loads that submodule twice
# and leaves it off its parent. Touching the package loads it whole; what was torn apart before is put
# together again.
numpyro.__version__  # noqa: B018
for _name, _module in list(sys.modules.items()):
    _parent, _, _child = _name.rpartition(".")
    if _parent.split(".")[0] == "numpyro" and not hasattr(sys.modules[_parent], _child):
        setattr(sys.modules[_parent], _child, _module)

_runs = itertools.count()
_user_context = jax.make_user_context(None)


def handler_stack() -> list[Any]:
    """NumPyro's live stack of effect handlers, outermost first."""
    return numpyro.primitives._PYRO_STACK  # pyright: ignore[reportAttributeAccessIssue]


@contextlib.contextmanager
def no_handlers() -> Any:
    """A context in which no effect handler is active: code inside runs as if called at top level."""
    stack = handler_stack()
    saved = stack[:]
    stack.clear()
    try:
        yield
    finally:
        stack[:] = saved


def trace_state() -> Any:
    """A value that changes whenever JAX enters or leaves a transformation."""
    return get_opaque_trace_state(convention="nnx")


def own_caches() -> contextlib.AbstractContextManager:
    """A context in which JAX shares no traced inner functions (jit, scan, while bodies) with code outside of it.

    A body that was traced earlier is served from JAX's cache: its Python code does not run and its statements
    go unseen. Inside this context a body with a statement is never cached, because meeting the statement
    there is an error.
    """
    return _user_context("lapilli")


def fresh_caches() -> contextlib.AbstractContextManager:
    """A context of its own for one run: needed where a handler hides statements, which would then be cached unseen."""
    return _user_context(("lapilli", next(_runs)))


def first_key(dtype: Any) -> Any:
    """The key of seed 0 of a key type."""
    return jax.random.key(0, impl=dtype._impl.name)


def is_concrete(tree: Any) -> bool:
    """Whether the values of all leaves are known."""
    return not any(isinstance(x, Tracer) for x in jax.tree.leaves(tree))


def own_trace(x: Any) -> Any:
    """What tells the innermost transformation that a value varies with; None where nothing does."""
    return getattr(x, "_trace", None)  # no public name


def typed_key(key: Any) -> jax.Array:
    """Accept both kinds of PRNG key and return a typed one.

    Raises:
        TypeError: if `key` is neither `jax.random.key(...)` nor a raw uint32 key of shape (2,).
    """
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if key.shape == ():
            return key
    elif dtype == jnp.uint32 and key.shape == (2,):
        return jax.random.wrap_key_data(key)
    raise TypeError(
        f"Argument 'key' must be one PRNG key, jax.random.key(seed) or jax.random.PRNGKey(seed); "
        f"got {type(key).__name__} with dtype {dtype} and shape {getattr(key, 'shape', None)}."
    )


def is_counter_based(dtype: Any) -> bool:
    """Whether the generator of keys of this type draws the same for one key and for the same key in a batch."""
    return dtype._impl.name == "threefry2x32"


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """(number of constants, number of carries) of a scan equation, for every supported jax."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def bind(eqn: Any, args: list[Any]) -> list[Any]:
    """Run one jaxpr equation on `args`."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    subfuns, params = bound if isinstance(bound, tuple) else ((), bound)
    outs = eqn.primitive.bind(*subfuns, *args, **params)
    return outs if eqn.primitive.multiple_results else [outs]
