"""Runs of simulators on the device: programs and traced functions; for black boxes see `_black_box.py`."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, PyTree

from ... import ppl
from ...ppl._compat import Tracer
from ...ppl._data import Masked, as_array, as_numbers
from ...ppl._foreign import first_sentence
from ...ppl._shared_jit import shared_jit
from ...ppl._single import checked
from ...ppl._types import Key
from ...ppl.inputs import same_numbers
from ...ppl.language import name_of
from .._depends import is_used

# Reading values of what is traced, or using a key as NumPy's generator.
_READ = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    AttributeError,
)
_DATA = "reference_table: the simulator's data"

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
        n: jnp.asarray(x) for n, x in named(simulator(data_key, parameters), parameters).items()
    }


def check_traced(simulator: SimulatorFn, prior: Callable[[Key], dict[str, Array]]) -> None:
    """Refuse a plain function that JAX cannot trace, or that draws numbers of its own when it does: all rows would share them.

    Raises:
        ValueError: it is such a function.

    Warns:
        UserWarning: no number that it returns depends on its key: it draws nothing, or by a seed of its own.
    """
    key = jax.random.key(0)
    # A function of its own each time: JAX keeps the trace of one that it knows.
    traced = lambda: jax.make_jaxpr(lambda key: called(simulator, prior, key))(key)
    try:
        one, other = traced(), traced()
    except _READ as err:
        if isinstance(err, AttributeError) and not isinstance(err.obj, Tracer):
            raise
        raise ValueError(
            f"reference_table: the simulator {name_of(simulator)} computes with numbers, and JAX traces it: "
            f"{first_sentence(err)} Pass loop='python', which calls it with numpy.random.Generator and NumPy's numbers, or write "
            "it with jax.numpy."
        ) from err
    if not same_numbers(one, other):
        raise ValueError(
            f"reference_table: the simulator {name_of(simulator)} draws random numbers that do not come from its key, as "
            "np.random does. They are drawn once, when it is traced, so that all simulations would share them. Draw by "
            "jax.random from the key, or pass loop='python', whose first argument is a numpy.random.Generator."
        )
    values = jax.eval_shape(prior, key)
    run = lambda key, values: {
        n: jnp.asarray(x) for n, x in named(simulator(key, values), values).items()
    }
    # The key is the first input. By a fixed seed two traces have the same numbers, as those of a function without noise have.
    if not is_used(jax.make_jaxpr(run)(key, values).jaxpr, 0):
        warnings.warn(
            f"reference_table: nothing that the simulator {name_of(simulator)} returns depends on its key. If it has noise of a "
            "fixed seed, as np.random.default_rng(0), all simulations share it, and what is learned is too sure: draw by "
            "jax.random from the key, or pass loop='python'. If it has none, a number of its data is a function of the "
            "parameters, and has no density.",
            UserWarning,
            stacklevel=3,
        )


def named(data: PyTree, known: Collection[str] = ()) -> dict[str, ArrayLike]:
    """What a simulator returned, by site; one array is "x".

    Args:
        data: what it returned.
        known: names of the parameters.

    Raises:
        TypeError: there are no numbers in it.
        ValueError: it is empty, or has a parameter's name.
    """
    one = {} if data is None else {"x": data}
    sites = dict(data) if isinstance(data, Mapping) else one
    found = {n: numbers_of(f"{_DATA} '{n}'", x) for n, x in sites.items()}
    if empty := [n for n, x in found.items() if not np.size(x)] if found else ["all of it"]:
        raise ValueError(
            f"reference_table: the simulator returned no number, {empty} empty. Let it return an array, or arrays by name."
        )
    if double := sorted(set(found) & set(known)):
        raise ValueError(
            f"reference_table: {double} are the names of parameters and of data. Return the data under names of their own."
        )
    return found


def numbers_of(label: str, x: PyTree) -> ArrayLike:
    """An array of numbers in a type of their own, integers and truth values included: of a list, a frame, a series.

    Also of what is traced.

    Raises:
        TypeError: it holds text, dates or complex numbers.
        ValueError: cells are missing, or parts have different shapes.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(x)):
        traced = jnp.asarray(x)
        numbers_of(label, np.zeros(traced.shape, traced.dtype))
        return traced
    found = as_array(label, x)
    if isinstance(found, Masked) or np.asarray(found).dtype.kind not in "biuf":
        return as_numbers(label, x)  # which says why there are none
    return np.asarray(found)


def on_host(label: str, x: PyTree) -> np.ndarray:
    """Numbers as an array of NumPy, each of which a device keeps apart.

    Raises:
        TypeError, ValueError: as of `numbers_of`, or they are not what a device would have.
    """
    return checked(label, np.asarray(numbers_of(label, x)))


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
