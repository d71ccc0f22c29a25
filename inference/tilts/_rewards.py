"""Rewards: one number for a value, tried at some values before anything is computed with them."""

from __future__ import annotations

import inspect
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


def refuse_evidence(who: str, base: ppl.Program, trace: ppl.Trace, then: str) -> None:
    """Refuse a program with observations or factors, which its draws do not see; `then` is what to do.

    Raises:
        ValueError: with their names.
    """
    counted = [n for n, info in trace.sites.items() if info.kind in ("observed", "factor")]
    if counted:
        raise ValueError(
            f"{who}: {base!r} has the observations or factors {counted}, and its draws are those of its prior. Draw from its "
            f"posterior by a program without them, e.g. a fitted guide, and {then}."
        )


def as_log_weight(
    reward: Reward, retval: PyTree, *others: Array | float, what: str = "tilt: reward"
) -> Float[Array, ""]:
    """The reward of one value as a number; of a constraint 0 where it holds, else -inf.

    Args:
        reward: its function.
        retval: the value.
        others: further arguments, e.g. a noising time.
        what: who asks for it, and how the user calls it.

    Raises:
        ValueError: there is nothing to read; the reward is no single number.
        TypeError: the reward cannot be traced, or returns something else than numbers.
    """
    value = as_reals(reward, retval, *others, what=what)
    if value.shape != ():
        raise ValueError(
            f"{what} '{name_of(reward)}' has shape {value.shape}, and one value has one reward, shape (). Sum it, or take the "
            "entry that counts: lambda x: reward(x).sum()."
        )
    if value.dtype == bool:
        return jnp.where(value, 0.0, -jnp.inf)
    return value.astype(float)


def as_reals(fn: Callable[..., PyTree], retval: PyTree, *others: Array | float, what: str) -> Array:
    """What a user's function makes of one value, as an array of real numbers or booleans of any shape.

    Args:
        fn: the function.
        retval: the value.
        others: further arguments.
        what: who asks for it, and how the user calls it.

    Raises:
        ValueError: there is nothing to read.
        TypeError: the function cannot be traced, or returns something else than real numbers.
    """
    name = f"{what} '{name_of(fn)}'"
    if retval is None:
        raise ValueError(
            f"{name} reads what the model returns, and the model returns nothing. Let it end with what is needed: return x, or "
            'return {"z": z, "x": x}.'
        )
    _check_takes(fn, 1 + len(others), name)
    try:
        value = fn(retval, *others)
    except jax.errors.TracerArrayConversionError as err:
        raise TypeError(
            f"{name} makes NumPy's arrays of its argument, which JAX traces. Write it with jax.numpy, or wrap it: "
            "jax.pure_callback(fn, jax.ShapeDtypeStruct((), float), x, vmap_method='sequential'); without gradients then."
        ) from err
    try:
        value = jnp.asarray(value)
    except (TypeError, ValueError) as err:
        raise TypeError(
            f"{name} returned {type(value).__name__}, which is no number. Let it return real numbers: one in nats, or a boolean "
            "for a constraint."
        ) from err
    if jnp.issubdtype(value.dtype, jnp.complexfloating):
        raise TypeError(
            f"{name} returned {value.dtype}. Let it return a real number, e.g. its real part."
        )
    return value


def _check_takes(fn: Callable[..., PyTree], num: int, name: str) -> None:
    """Refuse a function that cannot be called with as many arguments by position.

    Raises:
        TypeError: it cannot.
    """
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return  # some of C tell nothing
    try:
        signature.bind(*range(num))
    except TypeError as err:
        wanted = "one value, reward(x)" if num == 1 else "a value and a time, reward(x, t)"
        raise TypeError(
            f"{name} takes {signature}, and is called with {num} by position. Write it for {wanted}."
        ) from err


def refuse_rewards(
    name: str, found: np.ndarray, where: str, *, may_be_infinite: bool = False
) -> None:
    """Refuse rewards that are no numbers at some values.

    Args:
        name: of the reward, and who asks for it.
        found: the rewards.
        where: what they are rewards of.
        may_be_infinite: whether only their order counts, so that some may be infinite.

    Raises:
        ValueError: one is NaN or +inf, or all are infinite.
    """
    size = len(found)
    if num := int(np.isnan(found).sum()):
        raise ValueError(
            f"{name} is NaN at {num} of {size} {where}, which no law has. Make it a number there, e.g. by jnp.where with a safe "
            "argument, or -inf to exclude such values."
        )
    num = int((found == np.inf).sum())
    if num == size or (num and not may_be_infinite):
        raise ValueError(
            f"{name} is infinite at {num} of {size} {where}: nothing can be weighed by it. Bound it, e.g. by "
            "jnp.minimum(reward, 20.0)."
        )
    if (found == -np.inf).all():
        raise ValueError(
            f"{name} is -inf at all of {size} {where}: nothing is left of them, or next to nothing. Make the constraint soft (a "
            "finite reward that grows towards it), or, for a rare event that a proposal knows to reach, give tilt num_tried=0."
        )


def try_reward(
    base: ppl.Program, reward: Reward, number: int, args: tuple, kwargs: Mapping[str, PyTree], *,
    what: str = "tilt: reward", may_be_infinite: bool = False,
) -> None:  # fmt: skip
    """Refuse a reward that is no number at draws of the base.

    Raises:
        ValueError: it is NaN or infinite at a draw, or -inf at all of `MANY`.
    """
    found = _drawn_rewards(base, reward, 0, number, args, kwargs, what)
    if (found == -np.inf).all():
        found = _drawn_rewards(base, reward, 1, max(MANY, number), args, kwargs, what)
    name = f"{what} '{name_of(reward)}'"
    refuse_rewards(name, found, "draws of the model", may_be_infinite=may_be_infinite)


def _drawn_rewards(
    base: ppl.Program, reward: Reward, seed: int, number: int, args: tuple, kwargs: Mapping[str, PyTree], what: str,
) -> np.ndarray:  # fmt: skip
    """Rewards of draws of the base's statements, [number]; inside of other runs and transformations, too."""

    def one(key: Array) -> Array:
        trace = base._run(Runner(key), args, dict(kwargs))
        return as_log_weight(reward, trace.retval, what=what)

    with no_handlers(), jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.key(seed), number)
        return np.asarray(shared_jit(jax.vmap(one))(keys))
