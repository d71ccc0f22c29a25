"""Runs of simulators: programs and traced functions on the device, black boxes in this process or in workers."""

from __future__ import annotations

import concurrent.futures
import inspect
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, PyTree
from tqdm.auto import tqdm

from ... import ppl
from ...ppl._shared_jit import shared_jit
from ...ppl._types import Key

type Values = Mapping[str, np.ndarray]
# (key, or NumPy's generator; parameters by name) -> data by name, or one array
type SimulatorFn = Callable[..., PyTree]


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


def black_box(
    simulator: SimulatorFn, parameters: Values, key: Key, num_workers: int, progress: bool
) -> SimulatedRows:
    """Calls of a function with NumPy's numbers, in this process or in workers; row i has a generator of its own.

    Raises:
        ValueError: data of two simulations have other names or shapes.
    """
    size = len(next(iter(parameters.values())))
    entropy = np.asarray(jax.random.key_data(key)).ravel().tolist()
    jobs = [
        (simulator, [*entropy, i], {n: x[i] for n, x in parameters.items()}) for i in range(size)
    ]
    rows, failed, reason = [], np.zeros(size, bool), ""
    bar = tqdm(_results(jobs, num_workers), total=size, disable=not progress, desc="simulations")
    for i, (data, error) in enumerate(bar):
        failed[i] = error is not None
        reason = reason or error or ""
        rows.append(data)
    if failed.all():
        raise ValueError(
            f"reference_table: all {size} calls of the simulator raised, the first one {reason}. Mend it, or a prior that draws "
            "what it cannot take."
        )
    first = int(np.flatnonzero(~failed)[0])
    shapes = {name: np.shape(x) for name, x in rows[first].items()}
    for i in np.flatnonzero(~failed):
        other = {name: np.shape(x) for name, x in rows[i].items()}
        if other != shapes:
            raise ValueError(
                f"reference_table: simulation {first} returned {shapes}, and simulation {i} {other}. Let the simulator return "
                "data of one shape, e.g. summaries, or values padded with a count beside them."
            )
    stand_in = rows[first]
    data = {
        name: np.stack([np.asarray(stand_in[name] if f else row[name]) for row, f in zip(rows, failed, strict=True)])
        for name in shapes
    }  # fmt: skip
    return SimulatedRows(dict(parameters), data, failed, reason)


def _results(jobs: list[tuple], num_workers: int) -> Iterator[tuple[dict | None, str | None]]:
    if num_workers == 0:
        yield from map(_job, jobs)
        return
    # Started afresh: a fork of a process in which JAX has threads may hang.
    context = multiprocessing.get_context("spawn")
    chunk = max(1, len(jobs) // (8 * num_workers))
    with concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        yield from pool.map(_job, jobs, chunksize=chunk)


def _job(job: tuple) -> tuple[dict | None, str | None]:
    simulator, entropy, parameters = job
    try:
        data = named(simulator(np.random.default_rng(entropy), parameters))
        return {name: np.asarray(x) for name, x in data.items()}, None
    except Exception as err:  # a failure is counted, and the first one told
        return None, f"{type(err).__name__}: {err}"


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
