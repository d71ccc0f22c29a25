"""Runs of simulators on the device: programs and traced functions; for black boxes see `_black_box.py`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, PyTree

from ... import ppl
from ...ppl._shared_jit import shared_jit
from ...ppl._types import Key

type Values = Mapping[str, np.ndarray]
# (key, or NumPy's generator; parameters by name) -> data by name, or one array
type SimulatorFn = Callable[..., PyTree]
# (parameters in rows, key) -> the rows with their data
type DataFn = Callable[[Values, Key], SimulatedRows]


class SimulatedRows(NamedTuple):
    """Simulations as they came, rows first.

    Attributes:
        parameters, data: by site; data of a simulation that failed are NaN or zero.
        failed: which raised.
        reason: what the first of them raised.
    """

    parameters: dict[str, np.ndarray]
    data: dict[str, np.ndarray]
    failed: np.ndarray
    reason: str = ""


def drawn_by(
    draw: Callable[[Key], tuple[dict, dict]], key: Key, num_simulations: int, batch_size: int
) -> SimulatedRows:
    """Compiled draws; a batch has one size, and what the last one has too many is dropped."""
    batch_size = min(batch_size, num_simulations)
    run = shared_jit(jax.vmap(draw))
    keys = jax.random.split(key, -(-num_simulations // batch_size) * batch_size)
    parts = [run(keys[i : i + batch_size]) for i in range(0, len(keys), batch_size)]
    host = jax.tree.map(lambda *x: np.concatenate(x)[:num_simulations], *jax.device_get(parts))
    parameters, data = host
    return SimulatedRows(parameters, data, np.zeros(num_simulations, bool))


def called(
    simulator: SimulatorFn, prior: Callable[[Key], dict[str, Array]], key: Key
) -> tuple[dict[str, Array], dict[str, Array]]:
    """One traced simulation of a plain function."""
    prior_key, data_key = jax.random.split(key)
    parameters = prior(prior_key)
    return parameters, {
        n: jnp.asarray(x) for n, x in named(simulator(data_key, parameters)).items()
    }


def named(data: PyTree) -> dict[str, PyTree]:
    """What a simulator returned, by site; one array is "x"."""
    return dict(data) if isinstance(data, Mapping) else {"x": data}


def data_by(draw: Callable[[Key, dict[str, Array]], dict[str, PyTree]], batch_size: int) -> DataFn:
    """Data of given parameters by a compiled simulator; the last batch is filled up by its first rows."""
    run = shared_jit(
        jax.vmap(lambda key, values: {n: jnp.asarray(x) for n, x in draw(key, values).items()})
    )

    def simulate(parameters: Values, key: Key) -> SimulatedRows:
        size = len(next(iter(parameters.values())))
        batch = min(batch_size, size)
        keys = jax.random.split(key, -(-size // batch) * batch)
        filled = lambda x: np.resize(x, (batch, *x.shape[1:]))
        parts = [
            run(keys[i : i + batch], {n: filled(x[i : i + batch]) for n, x in parameters.items()})
            for i in range(0, size, batch)
        ]
        data = jax.tree.map(lambda *x: np.concatenate(x)[:size], *jax.device_get(parts))
        return SimulatedRows(dict(parameters), data, np.zeros(size, bool))

    return simulate


def data_of(program: ppl.Program, args: tuple, batch_size: int = 1_000) -> DataFn:
    """Data of given parameters, simulated by a program."""
    draw = lambda key, values: dict(program.predict_trace(key, values, *args).observed)
    return data_by(draw, batch_size)


def zeros_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[np.ndarray, ...]:
    """Data of these shapes, for what only asks for shapes."""
    return tuple(np.zeros(shape, np.float32) for shape in shapes.values())


def carrier(
    prior: ppl.Program, args: tuple[PyTree, ...], shapes: Mapping[str, tuple[int, ...]]
) -> ppl.Program:
    """The program of a prior and data that a plain function makes, whose laws are nobody's yet: learned ones stand in."""
    signature = inspect.Signature(
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in shapes]
    )

    def joint(*data: PyTree, **by_name: PyTree) -> None:
        given = signature.bind(*data, **by_name).arguments
        prior.run(*args)
        for name, shape in shapes.items():
            law = dist.Delta(jnp.zeros(shape)).to_event(len(shape))
            ppl.sample(name, law, obs=jnp.asarray(given[name]))

    joint.is_carrier = True  # pyright: ignore[reportFunctionMemberAccess]
    joint.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    joint.__name__ = f"{getattr(prior, '__name__', 'prior')}_and_simulator"
    return ppl.Program(joint, prior.params)


def is_carrier(program: ppl.Program) -> bool:
    """Whether data of the program are made by a plain function that it does not know."""
    return getattr(program.fn, "is_carrier", False)
