"""Functions compiled once, for calls in which they mean the same.

What a program means can change between calls (it may read numbers around it), so that a function counts as the same only where
the traced one is: the text of its jaxpr and the values of its constants are compared, not the function alone. A call therefore
traces, and compiles only what has not been compiled before.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NUM_KEPT = 32
_kept: collections.OrderedDict[str, Any] = collections.OrderedDict()  # executables, no arrays


def compiled(fn: Callable[..., Any], *args: Any) -> Any:
    """`fn` as an executable for arguments of the shapes of `args`, one of those kept where it is the same.

    Args:
        fn: a traceable function of arrays.
        args: trees of arrays.
    """
    traced = jax.jit(fn).trace(*args)
    name = _fingerprint(traced.jaxpr, args, traced.out_info)
    if name not in _kept:
        _kept[name] = traced.lower().compile()
    _kept.move_to_end(name)
    while len(_kept) > NUM_KEPT:
        _kept.popitem(last=False)
    return _kept[name]


def _fingerprint(closed: Any, inputs: Any, outputs: Any) -> str:
    leaves, treedef = jax.tree.flatten(inputs)
    kinds = [(jax.typeof(x).weak_type, getattr(x, "sharding", None)) for x in leaves]
    text = f"{closed} {treedef} {kinds} {jax.tree.structure(outputs)}"
    digest = hashlib.sha256(text.encode())
    for x in closed.consts:
        is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
        digest.update(np.asarray(jax.random.key_data(x) if is_key else x).tobytes())
    return digest.hexdigest()
