"""Rewards: one number for what a program returned, tried at some draws before anything is computed with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from ... import ppl
from ...ppl._compat import no_handlers
from ...ppl._shared_jit import shared_jit
from ...ppl.language import name_of
from ...ppl.traces import Runner

# What a program returned -> a number, or whether a constraint holds.
type Reward = Callable[..., ArrayLike]

MANY = 1000  # draws, at all of which a reward of -inf is taken for one that is -inf everywhere


def as_log_weight(reward: Reward, retval: PyTree) -> Float[Array, ""]:
    """The reward of one value as a number; of a constraint 0 where it holds, else -inf.

    Raises:
        ValueError: there is nothing to read; the reward is no single number.
        TypeError: the reward cannot be traced, or returns something else than numbers.
    """
    name = name_of(reward)
    if retval is None:
        raise ValueError(
            f"tilt: the model returns nothing, and reward '{name}' reads what it returns. Let the model end with what the reward "
            'needs: return x, or return {"z": z, "x": x}.'
        )
    try:
        value = reward(retval)
    except jax.errors.TracerArrayConversionError as err:
        raise TypeError(
            f"tilt: reward '{name}' makes NumPy's arrays of its argument, which JAX traces. Write it with jax.numpy, or wrap it: "
            "jax.pure_callback(reward, jax.ShapeDtypeStruct((), float), x, vmap_method='sequential'); without gradients then."
        ) from err
    try:
        value = jnp.asarray(value)
    except TypeError as err:
        raise TypeError(
            f"tilt: reward '{name}' returned {type(value).__name__}, which is no number. Let it return one number in nats, or a "
            "boolean for a constraint."
        ) from err
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise TypeError(
            f"tilt: reward '{name}' returned {value.dtype}. Let it return a real number, e.g. its real part."
        )
    if value.shape != ():
        raise ValueError(
            f"tilt: reward '{name}' has shape {value.shape}, and one run of the model has one reward, shape (). Sum it, or take "
            "the entry that counts: lambda x: reward(x).sum()."
        )
    if value.dtype == bool:
        return jnp.where(value, 0.0, -jnp.inf)
    return value.astype(float)


def try_reward(
    base: ppl.Program, reward: Reward, number: int, args: tuple, kwargs: Mapping[str, PyTree]
) -> None:
    """Refuse a reward that is no number at draws of the base.

    Raises:
        ValueError: it is NaN or infinite at a draw, or -inf at all of `MANY`.
    """
    found = drawn_rewards(base, reward, 0, number, args, kwargs)
    if (found == -np.inf).all():
        found = drawn_rewards(base, reward, 1, max(MANY, number), args, kwargs)
    name = name_of(reward)
    if num := int(np.isnan(found).sum()):
        raise ValueError(
            f"tilt: reward '{name}' is NaN at {num} of {len(found)} draws of the model, the tilt of which is no law. Make it a "
            "number there, e.g. by jnp.where with a safe argument, or -inf to exclude such values."
        )
    if num := int((found == np.inf).sum()):
        raise ValueError(
            f"tilt: reward '{name}' is infinite at {num} of {len(found)} draws of the model: the tilt has no finite total. Bound "
            "it, e.g. by jnp.minimum(reward, 20.0)."
        )
    if (found == -np.inf).all():
        raise ValueError(
            f"tilt: reward '{name}' is -inf at all of {len(found)} draws of the model: nothing is left of it, or next to "
            "nothing. Soften the constraint (a finite reward that grows towards it), or, for a rare event that a proposal knows "
            "to reach, give num_tried=0."
        )


def drawn_rewards(
    base: ppl.Program,
    reward: Reward,
    seed: int,
    number: int,
    args: tuple,
    kwargs: Mapping[str, PyTree],
) -> np.ndarray:
    """Rewards of draws of the base's statements, [number]; inside of other runs and transformations, too."""

    def one(key: Array) -> Array:
        trace = base._run(Runner(key), args, dict(kwargs))
        return as_log_weight(reward, trace.retval)

    with no_handlers(), jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.key(seed), number)
        return np.asarray(shared_jit(jax.vmap(one))(keys))
