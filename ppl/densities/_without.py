"""A program over the choices that are left of another one: what sums and integrals of it share."""

from __future__ import annotations

import abc

import jax
from jaxtyping import PyTree

from .._types import Choices, Key
from ..language import Program
from ..traces import Params

Array = jax.Array


class Without(Program, abc.ABC):
    """A program without some of its sites.

    Args:
        program: the program with its sites.
        sites: those that are gone.
        label: its name.
    """

    def __init__(self, program: Program, sites: tuple[str, ...], label: str) -> None:
        super().__init__(self._statements)
        self.__name__ = self.label = label
        self.program, self.sites = program, sites

    @abc.abstractmethod
    def _statements(self, *args: PyTree, **kwargs: PyTree) -> PyTree: ...

    @abc.abstractmethod
    def posterior(
        self, key: Key, choices: Choices, *args: PyTree, **kwargs: PyTree
    ) -> dict[str, Array]:
        """One joint draw of its sites given the choices and the data."""

    def all_drawn(
        self, key: Key, choices: Choices, *args: PyTree, **kwargs: PyTree
    ) -> dict[str, Array]:
        """One joint draw of its sites and of those that the program inside is without, given these."""
        key, now = jax.random.split(key)
        found = self.posterior(now, choices, *args, **kwargs)
        if isinstance(self.program, Without):
            found |= self.program.all_drawn(key, {**choices, **found}, *args, **kwargs)
        return found

    def init(self, key: Key, *args: PyTree, **kwargs: PyTree) -> Params:
        return self.program.init(key, *args, **kwargs)

    def __repr__(self) -> str:
        return f"<Program {self.label} of {self.program!r}>"
