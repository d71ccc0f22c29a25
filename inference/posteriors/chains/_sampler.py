"""NUTS, NumPyro's: chains side by side, in one compiled program that warms up and samples.

Chains move in coordinates q, u = location + factor q: what is known of the posterior's place and shape, from earlier draws or a
guide, goes into location and factor, which are inputs, so that a second run in better coordinates compiles nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree
from numpyro.infer.hmc import hmc

from ....ppl._compat import known_point
from ....ppl._precision import full_precision
from ....ppl._shared_jit import shared_jit
from ....ppl._types import Key
from ..._meshes import on_mesh, over_devices
from .._clock import Clock

Array = jax.Array
CHUNK = 250  # transitions in one device call, at most
_SECONDS_PER_CALL = 3.0  # so that a limit of time and Ctrl-C are heeded
DENSE_UP_TO = 50  # coordinates


class Frame(NamedTuple):
    """Coordinates q of points u = location + factor q; a factor of shape [d] is diagonal."""

    location: Any
    factor: Any


class Run(NamedTuple):
    """Transitions of all chains, NumPy arrays with axes [chains, draws, ...].

    Attributes:
        u: points.
        log_density: at these points, nats.
        energy: of the Hamiltonian at each transition.
        is_diverging: whether the trajectory broke off.
        num_steps: leapfrog steps.
    """

    u: np.ndarray
    log_density: np.ndarray
    energy: np.ndarray
    is_diverging: np.ndarray
    num_steps: np.ndarray


class Sampler:
    """Chains on one log-density; compiled at its first use.

    Args:
        log_density: (u [d], arrays) -> nats.
        arrays: data.
        dimension: d.
        num_chains: chains side by side.
        num_warmup: transitions that adapt.
        is_dense: whether the mass matrix has correlations.
        learns_mass: whether the warm-up adapts the mass matrix, and not the step size alone.
        clock: asked between device calls whether there is time for another one.
        mesh: devices over which chains are split; each goes its own way between device calls.

    Attributes:
        num_gradients: evaluations of the gradient so far, of all chains.
    """

    def __init__(
        self, log_density: Callable[..., Array], arrays: list[np.ndarray], dimension: int, *,
        num_chains: int, num_warmup: int, is_dense: bool, learns_mass: bool = True,
        clock: Clock | None = None, mesh: Mesh | None = None,
    ) -> None:  # fmt: skip
        self._log_density, self._arrays = log_density, arrays
        self.dimension, self.num_chains, self.num_warmup = dimension, num_chains, num_warmup
        self._learns_mass, self.num_gradients = learns_mass, 0
        self._is_dense, self.clock, self._length = is_dense, clock or Clock(), 0
        begin = jax.vmap(self._begin, (0, 0, None, None, None))
        self._begun = shared_jit(over_devices(begin, mesh, (0, 0, None, None, None), 0))
        axes = (0, None, None, None, None)
        self._many = shared_jit(over_devices(self._transitions, mesh, axes, (0, 1)))
        self._mesh = mesh

    def frame(self) -> Frame:
        """The coordinates of the program themselves."""
        shape = (self.dimension,) * (2 if self._is_dense else 1)
        return Frame(
            np.zeros(self.dimension, np.float32),
            np.eye(*shape, dtype=np.float32) if self._is_dense else np.ones(shape, np.float32),
        )

    def begin(self, key: Array, u: np.ndarray, frame: Frame, target_accept: float) -> PyTree:
        """The state of chains that begin to adapt at points [chains, d]."""
        keys = jax.random.split(key, self.num_chains)
        q = np.asarray(_from(frame, u), jnp.result_type(float))
        return self._begun(*on_mesh((keys, q), self._mesh, 0), *self._held(frame, target_accept))

    def advance(
        self, state: PyTree, frame: Frame, target_accept: float, num: int, what: str = "draws"
    ) -> tuple[PyTree, Run]:
        """`num` transitions, fewer where the time is spent or Ctrl-C was pressed; `what` they are, for progress."""
        parts, done = [], 0
        try:
            while done < num:
                size, began = min(max(self._length, 1), num - done), time.monotonic()
                state, out = self._many(state, *self._held(frame, target_accept, size))
                parts.append(tuple(np.asarray(x)[:size] for x in out))
                self.num_gradients += int(parts[-1][-1].sum())
                done += size
                self._set_length(size, time.monotonic() - began)
                self.clock.tell(f"{done} of {num} {what}")
                if self.clock.is_over():
                    break
        except KeyboardInterrupt:
            self.clock.interrupt()
        if not parts:
            shape = (self.num_chains, 0)
            flags, numbers = np.zeros(shape, bool), np.zeros(shape)
            return state, Run(np.zeros((*shape, self.dimension)), numbers, numbers, flags, numbers)
        q, potential, energy, is_diverging, num_steps = (
            np.concatenate(x).swapaxes(0, 1) for x in zip(*parts, strict=True)
        )
        return state, Run(_to(frame, q), -potential, energy, is_diverging, num_steps)

    def _held(self, frame: Frame, *numbers: float) -> tuple[PyTree, ...]:
        """What is the same for all chains."""
        if self._mesh is None:
            return (frame, *numbers, self._arrays)
        return on_mesh((frame, *map(jnp.asarray, numbers), self._arrays), self._mesh)

    def _set_length(self, size: int, seconds: float) -> None:
        """How many transitions the next device call makes; the first one, which compiles, tells nothing."""
        if not self._length:
            self._length = 8
            return
        each = max(seconds, 1e-6) / size
        wanted = min(_SECONDS_PER_CALL, self.clock.left) / each
        self._length = int(np.clip(wanted, 1, min(8 * size, CHUNK)))

    @full_precision
    def _potential(self, q: Array, frame: Frame, arrays: list[Array]) -> Array:
        is_diagonal = jnp.ndim(frame.factor) == 1
        shift = frame.factor * q if is_diagonal else frame.factor @ q
        return -self._log_density(frame.location + shift, arrays)

    def _kernel(
        self, frame: Frame, arrays: list[Array]
    ) -> tuple[Callable[..., PyTree], Callable[..., PyTree]]:
        return hmc(lambda q: self._potential(q, frame, arrays), algo="NUTS")

    def _started(
        self, init: Callable[..., PyTree], key: Key, point: PyTree, target_accept: Array
    ) -> PyTree:
        return init(
            point, num_warmup=self.num_warmup, step_size=1.0 / max(self.dimension, 1) ** 0.25,
            dense_mass=self._is_dense, adapt_mass_matrix=self._learns_mass, target_accept_prob=target_accept,
            trajectory_length=None, rng_key=key,
        )  # fmt: skip

    def _begin(
        self, key: Array, q: Array, frame: Frame, target_accept: Array, arrays: list[Array]
    ) -> PyTree:
        value, gradient = jax.value_and_grad(self._potential)(q, frame, arrays)
        init, _ = hmc(lambda q: jnp.zeros(()), algo="NUTS")
        return self._started(init, key, known_point(q, value, gradient), target_accept)

    def _transitions(
        self, state: PyTree, frame: Frame, target: Array, num: Array, arrays: list[Array]
    ) -> tuple[PyTree, tuple[Array, ...]]:
        """The state after `num` transitions, `CHUNK` at most, and what is kept of each, [CHUNK, chains, ...]."""
        init, sample = self._kernel(frame, arrays)
        # NumPyro's kernel learns its options from the call that begins a chain; its result is not used here.
        point = known_point(state.z[0], state.potential_energy[0], state.z_grad[0])
        self._started(init, jax.random.key(0), point, target)

        def told(state: PyTree) -> tuple[Array, ...]:
            return state.z, state.potential_energy, state.energy, state.diverging, state.num_steps

        def step(i: Array, carry: tuple[PyTree, tuple[Array, ...]]) -> PyTree:
            state, kept = carry
            state = jax.vmap(sample)(state)
            kept = tuple(x.at[i].set(new) for x, new in zip(kept, told(state), strict=True))
            return state, kept

        # The number is an input: calls of every length are one program.
        kept = tuple(jnp.zeros((CHUNK, *x.shape), x.dtype) for x in told(state))
        return jax.lax.fori_loop(0, num, step, (state, kept))


def is_finite(state: PyTree) -> np.ndarray:
    """Whether each chain stands where the log-density and its gradient are finite."""
    return np.isfinite(state.potential_energy) & np.isfinite(np.asarray(state.z_grad)).all(-1)


def _to(frame: Frame, q: np.ndarray) -> np.ndarray:
    factor = np.asarray(frame.factor, float)
    shift = q * factor if factor.ndim == 1 else q @ factor.T
    return np.asarray(frame.location, float) + shift


def _from(frame: Frame, u: np.ndarray) -> np.ndarray:
    factor = np.asarray(frame.factor, float)
    centred = np.asarray(u, float) - np.asarray(frame.location, float)
    return centred / factor if factor.ndim == 1 else np.linalg.solve(factor, centred.T).T


def frame_of(u: np.ndarray, *, is_dense: bool) -> Frame:
    """Coordinates in which points [S, d] have mean 0 and unit scales, correlations taken out if there are enough points."""
    location, factor = mean_and_root(u) if is_dense else (u.mean(0), _scales(u))
    return Frame(np.float32(location), np.float32(factor))


def mean_and_root(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of points [S, d] and a root of their covariance [d, d], correlations shrunk by d / (d + S) towards none."""
    (size, d), location, scale = u.shape, u.mean(0), _scales(u)
    with np.errstate(invalid="ignore"):  # of a coordinate that does not move
        correlation = np.atleast_2d(np.corrcoef((u - location) / scale, rowvar=False))
    share = d / (d + size)  # keeps it positive definite
    root = np.linalg.cholesky((1 - share) * np.nan_to_num(correlation) + share * np.eye(d))
    return location, scale[:, None] * root


def _scales(u: np.ndarray) -> np.ndarray:
    return np.maximum(u.std(0), 1e-30)
