"""The statement `rng_key`: noise that is not a site."""

from __future__ import annotations

from typing import Any

import jax

from .._compat import apply_stack, handler_stack

Array = jax.Array


def rng_key(name: str) -> Array:
    """A random key of its own address, for noise that is not a site (dropout). Replays of the program see the same key.

    The noise may be moved and scaled by parameters. A draw whose value jumps as they move (`bernoulli(key, p)`) is refused
    by `ppl.expectation`: it has to be a site.

    Args:
        name: name of the key, apart from other keys of the program.
    """
    message: dict[str, Any] = {
        "type": "prng_key",
        "name": f"rng:{name}",
        "fn": lambda rng_key: rng_key,
        "args": (),
        "kwargs": {"rng_key": None},
        "value": None,
    }
    key = apply_stack(message)["value"] if handler_stack() else None
    if key is None:
        raise RuntimeError(
            f"ppl.rng_key('{name}') needs a running program; call simulate(key), an objective, or seed it."
        )
    return key
