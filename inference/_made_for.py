"""What the draws of a result were made for, which stays with them as long as the result is no output of compiled code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import PyTree

from ..ppl._compat import is_concrete
from ..ppl._types import Args
from ..ppl.language import Labels, as_tuple, joined, labels_of
from ._arguments import is_mapped


@dataclasses.dataclass(frozen=True, eq=False)
class MadeFor:
    """Arguments, and the names that their data brought along.

    Attributes:
        args: the arguments of the program; None where they are not known.
        labels: levels of categories and columns of frames among them, by argument; new ones are put in their order.
    """

    args: tuple | None = None
    labels: Labels = dataclasses.field(default_factory=dict)


def made_for(program: object, args: Args, kwargs: Mapping[str, PyTree]) -> MadeFor | None:
    """What a call of the program is made with; None inside of compiled code, where it is not known."""
    given = as_tuple(args, kwargs)
    if not is_concrete(given):
        return None
    return MadeFor(own(joined(given, {}, program)), labels_of(given, program))


def drops_origin[C: type](cls: C) -> C:
    """Class decorator: a dataclass as a pytree, without its field `made_for`, which `jax.jit` could not hand through."""
    return jax.tree_util.register_dataclass(cls, drop_fields=("made_for",))


def own(args: PyTree) -> PyTree:
    """The arguments with arrays of NumPy copied, since their owner may write into them; files that are mapped stay files."""
    return jax.tree.map(
        lambda x: x.copy() if isinstance(x, np.ndarray) and not is_mapped(x) else x, args
    )
