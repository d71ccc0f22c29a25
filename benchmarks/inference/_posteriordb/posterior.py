"""A posterior with a reference: a program, its data, and means and standard deviations that others have computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

Arrays = dict[str, np.ndarray]
Draws = Mapping[str, jnp.ndarray]
_FILE = Path(__file__).with_name("data.npz")


class Summary(NamedTuple):
    """Posterior mean and standard deviation of one parameter, of its shape."""

    mean: np.ndarray
    sd: np.ndarray


@dataclass(frozen=True)
class Posterior:
    """One posterior of posteriordb.

    Attributes:
        name: there, data and model.
        model: the program.
        arguments: the data as they lie there -> arguments of the program by name.
        parameters: draws of the program's sites -> draws of the parameters of the reference.
        discrete: sites that other software must have summed out.
    """

    name: str
    model: Callable[..., object]
    arguments: Callable[[Arrays], dict[str, object]]
    parameters: Callable[[Draws], Draws] = dict
    discrete: tuple[str, ...] = ()

    def args(self) -> dict[str, object]:
        """Arguments of the program by name."""
        return self.arguments(_read(f"{self.name}/data/"))

    def reference(self) -> dict[str, Summary]:
        """Means and standard deviations by parameter, of posteriordb's 10,000 draws.

        Where it has none (radon, surgical, Mb) of 8,000 of NumPyro's NUTS in double precision; of seeds of 40,000, the plates'
        effects standardised (R-hat 1.0004, at least 14,272 effective draws).
        """
        mean, sd = _read(f"{self.name}/mean/"), _read(f"{self.name}/sd/")
        return {name: Summary(mean[name], sd[name]) for name in mean}


def numbers(x: object) -> jnp.ndarray:
    """As an array of floats."""
    return jnp.asarray(np.asarray(x, float))


def counts(x: object) -> jnp.ndarray:
    """As an array of integers."""
    return jnp.asarray(np.asarray(x, int))


def _read(prefix: str) -> Arrays:
    with np.load(_FILE) as file:
        return {n.removeprefix(prefix): file[n] for n in file.files if n.startswith(prefix)}
