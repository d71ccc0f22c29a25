"""Batches from an iterable, one after the other, and where it stands."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from ....ppl.language import Labels, labelled_as


class LoaderState(NamedTuple):
    """Where a loader stood: its own state, JSON or bytes, after so many batches of the run."""

    state: PyTree
    num_read: int


class IterableReader:
    """An iterable that can be iterated again (a list, a data loader) starts anew at its end; an iterator has one."""

    def __init__(self, iterable: Iterable):
        self._iterable: PyTree = iterable
        self._iterator: PyTree = iter(iterable)
        self._is_one_shot = self._iterator is iterable
        self.place = (0, 0)  # epoch, and batches read of it

    def next(self) -> PyTree:
        """The next item; None at the end."""
        item = next(self._iterator, None)
        if item is None and not self._is_one_shot:
            self._iterator = iter(self._iterable)
            item = next(self._iterator, None)
            self.place = (self.place[0] + 1, 0)
        self.place = (self.place[0], self.place[1] + 1)
        return item

    def get_state(self) -> Mapping[str, PyTree] | None:
        """What Grain's iterators and PyTorch's stateful loaders say of where they stand; None of others."""
        state = None
        if hasattr(self._iterator, "get_state") and hasattr(self._iterator, "set_state"):
            state = self._iterator.get_state()
        elif hasattr(self._iterable, "state_dict") and hasattr(self._iterable, "load_state_dict"):
            state = self._iterable.state_dict()
        return copy.deepcopy(state)  # it is kept while the loader reads on, and may be its own

    def set_state(self, state: dict[str, PyTree]) -> None:
        """Go on from there."""
        if hasattr(self._iterator, "set_state"):
            self._iterator.set_state(state)
        else:
            self._iterable.load_state_dict(state)
            self._iterator = iter(self._iterable)


def as_args(item: tuple[np.ndarray, ...], number: int, labels: Labels) -> tuple:
    """A batch as the tuple of a program's arguments, categories and columns in the order of `labels`."""
    # Data loaders collate into lists as often as into tuples.
    if isinstance(item, tuple | list | Mapping):
        return labelled_as(labels, item, None)
    raise TypeError(
        f"Argument 'args': batch {number} is a {type(item).__name__}, but each batch must be a tuple of the program's "
        "arguments, or a dict from their names. Yield (x,) for a program of one argument; if 'args' holds the data itself, make "
        "it a tuple."
    )
