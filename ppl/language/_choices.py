"""Choices handed to a program: those it does not have, and what a run gives beside them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._data import as_value
from .._types import Choices, ModelFn
from ..traces import Runner, Trace

Array = jax.Array


def arrays(choices: Mapping[str, PyTree]) -> dict[str, Array]:
    """The choices, numbers made arrays."""
    found = {name: as_value(x, f"The value of site '{name}'") for name, x in choices.items()}
    return {name: jnp.asarray(value) for name, value in found.items()}


class ChoiceMismatch(ValueError):
    """Choices that do not name exactly the latent sites of a program.

    Attributes:
        missing: latent sites without a value.
        extra: values without a latent site.
    """

    def __init__(self, message: str, missing: list[str], extra: list[str]) -> None:
        super().__init__(message)
        self.missing, self.extra = missing, extra


def predictions(trace: Trace, choices: Choices) -> dict[str, Array]:
    """What such a trace holds beside the choices that were given whole."""
    drawn = {
        name: value
        for name, value in trace.choices.items()
        if (name not in choices or jnp.shape(value) != jnp.shape(choices[name]))
        and not trace.sites[name].is_imputed
    }
    return {**drawn, **trace.observed, **trace.deterministic}


def check_used(runner: Runner, choices: Collection[str], program: ModelFn) -> None:
    """Refuse choices that leave a latent site of the run out, or name none."""
    latent = [name for name, info in runner.frame.infos.items() if info.kind == "latent"]
    extra = sorted(set(choices) - runner.frame.used)
    missing = sorted(set(runner.missing))
    if extra or missing:
        raise ChoiceMismatch(
            f"{program!r}: the choices do not match the program's latent sites {latent}: missing {missing}, "
            f"extra {extra}. Give a value for every latent site (time and particle axes first) and no other.",
            missing,
            extra,
        )
