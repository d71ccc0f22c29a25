"""Draws of a posterior with their certificate."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from ... import ppl
from ...ppl._calls import checked_call
from ...ppl._show import shown
from ...ppl._types import ModelFn
from ...ppl.language import Keywords, labelled_as
from .._made_for import own
from .._mapped import Parts
from .._meshes import over_auto_axes
from ..fitting.prediction import DrawsOrigin, predicted, thinned
from ..inputs import check_new
from ._certificate import Certificate
from ._saved import load_draws, save_draws


@shown
@dataclasses.dataclass(frozen=True)
class Draws:
    """Equally weighted draws of a posterior; made by `infer` and `nuts`.

    Attributes:
        choices: latent site -> values, NumPy arrays [S, *site shape]; what was summed or integrated out is drawn, too. The axis
            S is chains times draws, chain by chain.
        certificate: whether they can be believed, and by what.
        num_chains: chains; 1 where draws are no chain's.
        statistics: name -> numbers [S]: "lp", the log-density that was sampled (unconstrained, nats), and of chains
            "diverging", "energy", "n_steps".
        model: the program, with all its sites.
        args: the arguments that were given, arrays of NumPy as copies.
        labels: levels of categories and columns of frames among them, by argument; new ones are put in their order.
    """

    choices: dict[str, np.ndarray]
    certificate: Certificate
    num_chains: int
    statistics: dict[str, np.ndarray]
    model: ppl.Program
    args: tuple | None
    labels: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", own(self.args))

    def _facts(self) -> dict[str, PyTree]:
        size = len(next(iter(self.choices.values()), ()))
        chains = f" of {self.num_chains} chains" if self.num_chains > 1 else ""
        return self.certificate._facts() | {
            "method": f"{self.certificate.method}, {size} draws{chains}",
            "sites": {name: x[0] for name, x in self.choices.items()} if size else self.choices,
        }

    def by_chain(self) -> dict[str, np.ndarray]:
        """Latent site -> values [chains, draws, *site shape]."""
        return {n: x.reshape(self.num_chains, -1, *x.shape[1:]) for n, x in self.choices.items()}

    @over_auto_axes
    @checked_call
    def predict(
        self,
        key: jax.Array,
        *new_args: np.ndarray,
        num_samples: int | None = None,
        num_seen: int | None = None,
        keep: str | Sequence[str] | None = None,
        batch_size: int = 100,
        mesh: Mesh | None = None,
        **new_kwargs: PyTree,
    ) -> dict[str, np.ndarray]:
        """Draw from the posterior predictive p(x_new | z), z one of the draws.

        A statement whose `obs` is None at the new arguments is drawn: `model(X, y=None)` predicts y of new rows by
        `draws.predict(key, X_new)`. Statements that have an `obs` there are drawn anew.

        Args:
            key: PRNG key.
            *new_args: arguments of the model; default, those that were given.
            num_samples: number of predictions, for which draws are thinned evenly or repeated; default, one for each draw.
            num_seen: steps of a scan whose observations are kept, as for `inference.predict`; the rest is a forecast.
            keep: fnmatch patterns of sites whose draws are kept, the others being drawn by the model; default all but those
                that belong to rows, at other rows.
            batch_size: draws held on a device at once. It does not change which draws are made.
            mesh: devices over which they are split; the same draws, to rounding.
            **new_kwargs: keyword arguments of the model.

        Returns:
            All sites that are not kept by name, NumPy arrays [num_samples, *site shape].

        Raises:
            ValueError: a pattern matches no site; a site that is kept belongs to other rows; and what `inference.predict`
                refuses.
        """
        args = self.args
        if new_args or new_kwargs:
            given = (*new_args, Keywords(new_kwargs)) if new_kwargs else new_args
            args = labelled_as(self.labels, given, self.model)
            check_new("Draws.predict", self.model, args)
        if args is None:
            raise ValueError(
                "Draws.predict has no arguments: they were not saved. Pass the arguments of the program."
            )
        num_samples = len(next(iter(self.choices.values()))) if num_samples is None else num_samples
        return predicted(
            "Draws.predict", self.model, thinned("Draws.predict", self.choices, num_samples), key, args,
            num_samples, num_seen=num_seen, keep=keep, origin=DrawsOrigin(self.args),
            parts=Parts(batch_size, mesh),
        )  # fmt: skip

    @checked_call
    def save(self, path: str | os.PathLike, *, data: bool = True) -> None:
        """Write the draws with their certificate to one file, whole or not at all: a NumPy archive without pickled objects.

        Args:
            path: where.
            data: whether the arguments go with them.

        Raises:
            OSError: the file cannot be written; what was there before is unchanged.
            ValueError: an argument is neither an array nor a plain value, nor a tuple, list or dict of these.
        """
        save_draws(self, path, data=data)

    @classmethod
    @checked_call
    def load(cls, path: str | os.PathLike, model: ModelFn, *, args: PyTree = None) -> Draws:
        """Read what `save` wrote.

        Args:
            path: the file.
            model: the program, as given to `infer`; it is compared with the file site by site.
            args: arguments of the program, a tuple or a dict, in place of those in the file.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read.
            ValueError: the file is none of `save`, or has changed since; it belongs to another program, each difference named.
        """
        return load_draws(cls, path, model, args)
