"""Random keys of addresses, and other noise for chosen sites, all else equal."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.primitives import Messenger

from .._types import Message

Array = jax.Array
# The name under which a jaxpr calls the derivation: interpreters of traced programs know it for what it is.
FOLD_ADDRESS = "lapilli_fold_address"
# Odd, so that the product is a bijection of the words; not one, so that nested addresses do not commute.
MULTIPLIER = np.uint32(0x9E3779B1)
SALT = "lapilli_salt"
# A site that is met again in the same region draws from the key of its name, not of its address: the same noise again.
COMMON = "lapilli_common_noise"


def fold_name(key: Array, name: str, *, kind: str = "site") -> Array:
    """The key of the address `name` under `key`: its words times an odd constant, plus a 128-bit hash of kind and name.

    What is no site (the subsample of a plate, a `rng_key` statement, a region) has a kind of its own, so that no site's name can
    be chosen to share its key.

    A counter-based generator (Threefry, Philox) gives independent streams for different keys however they are related (Salmon
    et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 2), so that keys need be different, not random:
    `jax.random.fold_in` would add a Threefry call to every site, which costs more to compile than the site's own draw.
    """
    return _fold_address(key, *_words(name, kind))


@functools.lru_cache(maxsize=4096)
def _words(name: str, kind: str) -> tuple[np.uint32, ...]:
    person = b"" if kind == "site" else kind.encode()
    hashed = hashlib.blake2b(name.encode(), digest_size=16, person=person)
    return tuple(np.frombuffer(hashed.digest(), "<u4"))


def _fold(key: Array, *words: Array) -> Array:
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    data = jax.random.key_data(key) if is_typed else key
    data = data * MULTIPLIER + jnp.stack(words[: data.shape[-1]])
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(key)) if is_typed else data


_fold.__name__ = FOLD_ADDRESS
_fold_address = jax.jit(_fold)


class Salted(Messenger):
    """Draw the sites named in `salts` (name -> integer) under an expectation from keys of their own.

    Two runs with equal keys and salts draw equal values; a site whose salt differs gets independent noise, in all its
    steps, rows and particles, while every other site keeps its own.
    """

    def __init__(self, salts: Mapping[str, Array]) -> None:
        super().__init__()
        self.salts = salts

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "sample" and not msg["is_observed"] and msg["name"] in self.salts:
            msg["infer"] = {**(msg["infer"] or {}), SALT: self.salts[msg["name"]]}
