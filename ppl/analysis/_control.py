"""What a function returns that brings a control variate, and its check."""

from __future__ import annotations

import dataclasses

import jax

from ..jaxprs import Analysis
from ..strategies import StrategySite

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Controlled:
    """A value with a control variate of known mean. Made by `controlled`.

    Attributes:
        value: what is estimated, a scalar.
        control: a scalar of the same draws.
        mean: its exact mean.
    """

    value: Array
    control: Array
    mean: Array

    @property
    def with_unit_coefficient(self) -> Array:
        """The program that is analysed: every site and jump of value and control is in it."""
        return self.value - (self.control - self.mean)


def check_mean(facts: Analysis, mean: object, sites: dict[int, StrategySite]) -> None:
    """Refuse a mean that depends on draws.

    Raises:
        ValueError: with the names of the sites.
    """
    found = [sites[i].address for i in facts[mean].relations if isinstance(i, int) and i in sites]
    if found:
        raise ValueError(
            f"ppl.controlled: the mean of the control variate depends on the draws of {sorted(found)}, so that the estimate "
            "would be biased. Give the exact mean, a function of parameters and arguments alone."
        )
