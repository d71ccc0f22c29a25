"""The guides of a model alone: Normals, with all correlations or with none.

The first is trained in coordinates in which the posterior is nearly the standard one, the second for very many coordinates.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import PyTree
from numpyro.distributions.transforms import (
    LowerCholeskyAffine,
    ScaledUnitLowerCholeskyTransform,
    biject_to,
)
from numpyro.infer.autoguide import AutoContinuous, AutoDiagonalNormal

from ....ppl import rescale_plates
from ....ppl._compat import handler_stack, is_concrete, no_handlers
from ....ppl._precision import full_precision
from ....ppl._types import Key, Message, ModelFn, ParamMap
from ....ppl.language import as_program, as_tuple
from ..._host_keys import split
from ..data import RowBlocks
from ._search import Starts, find_starts, start_without_search
from ._space import Landscape, Space

Array = jax.Array


class _ScaledUnitLowerCholesky(type(dist.constraints.scaled_unit_lower_cholesky)):  # pyright: ignore[reportGeneralTypeIssues]
    """As NumPyro's, with a bijection that is compiled sooner."""


class _ByGather(ScaledUnitLowerCholeskyTransform):
    """NumPyro's numbers by a gather in place of a scatter, which takes longer to compile than the rest of a small step."""

    codomain = _ScaledUnitLowerCholesky()

    def __call__(self, x: Array) -> Array:
        d = round((math.sqrt(1 + 8 * x.shape[-1]) - 1) / 2)
        number = np.full((d, d), x.shape[-1] - d)  # that of a zero behind the others
        number[np.tril_indices(d, -1)] = np.arange(x.shape[-1] - d)
        zero = jnp.zeros((*x.shape[:-1], 1), x.dtype)
        below = jnp.concatenate([x[..., :-d], zero], -1)[..., number]
        return (below + jnp.eye(d, dtype=x.dtype)) * jax.nn.softplus(x[..., -d:])[..., None]

    def _inverse(self, y: Array) -> Array:
        scale = jnp.diagonal(y, axis1=-2, axis2=-1)
        rows, columns = np.tril_indices(y.shape[-1], -1)
        # The inverse of softplus, without overflow.
        free = scale + jnp.log(-jnp.expm1(-scale))
        return jnp.concatenate([(y / scale[..., None])[..., rows, columns], free], -1)


biject_to.register(_ScaledUnitLowerCholesky, lambda constraint: _ByGather())


class AutoWhitenedNormal(AutoContinuous):
    """A Normal on the unconstrained values u of all continuous sites of a model, which begins near the posterior's best one.

        u = center + factor (loc + scale_tril eps),   eps standard Normal

    When it meets the model it follows Newton's steps from several dispersed points (`fitting.starts`) and takes the mean and the
    Cholesky factor of the best Normal that it finds as "auto_center" and "auto_factor", which no gradient changes. Trained are
    "auto_loc", from 0, and "auto_scale_tril", from the identity: in these coordinates all scales are near 1 and correlations
    near 0, whatever the units of the model.

    Args:
        model: a program whose latent sites are continuous.
        rank: "full", or "diagonal" for a diagonal "auto_scale" in place of `scale_tril`: all correlations are then those of the
            factor.
        hidden: continuous sites that are left to the model (missing cells).
        prefix: of the names of its parameters and of its site.

    Attributes:
        starts: what was found, where the guide met its model with data in this process; else None.
        blocks: of the rows of these data, where they are not held as a whole.
    """

    scale_tril_constraint = _ScaledUnitLowerCholesky()
    starts: Starts | None = None
    blocks: RowBlocks | None = None

    def __init__(
        self,
        model: ModelFn,
        *,
        rank: Literal["full", "diagonal"] = "full",
        hidden: tuple[str, ...] = (),
        prefix: str = "auto",
    ) -> None:
        self.rank, self.hidden = rank, hidden
        super().__init__(as_program(model), prefix=prefix)

    def meet(self, *args: PyTree, **kwargs: PyTree) -> None:
        """Learn the model's sites, and where to start."""
        self._setup_prototype(*args, **kwargs)

    def _setup_prototype(self, *args: PyTree, **kwargs: PyTree) -> None:
        key = _fresh_key()
        args = as_tuple(args, kwargs)
        with no_handlers():
            self.space = _space(self, args)
            self.latent_dim = self.space.dimension
            if is_concrete((args, key)):
                self.starts = find_starts(self.space, args, key, blocks=self.blocks)
        best = None if self.starts is None else self.starts.best
        if best is not None and best.broken is not None:
            reason = self.space.what_breaks(best.broken, args) or "the log-density is no number."
            raise ValueError(
                f"{type(self).__name__}: more than one in twenty draws of the best Normal that was found have no finite "
                f"log-density under {self.model!r}, which no Normal guide can mend. At the first of them: {reason} Mend the "
                "program there, or give its sites laws that stay where it is defined."
            )
        identity = np.eye(self.latent_dim)
        self._init_latent = _single(np.zeros(self.latent_dim) if best is None else best.center)
        self._init_factor = _single(identity if best is None else best.factor)
        self._unpack_latent = self.space.unravel
        self.prototype_trace = _prototypes(self.space)

    @property
    def trained(self) -> tuple[str, str]:
        """The parameters that gradients change, in units of the posterior."""
        return f"{self.prefix}_loc", f"{self.prefix}_scale" + "_tril" * (self.rank == "full")

    def __getstate__(self) -> dict[str, PyTree]:
        # Without compiled functions and data.
        return super().__getstate__() | {"starts": None, "blocks": None}

    def get_base_dist(self) -> dist.Distribution:
        """The standard Normal."""
        return dist.Normal(jnp.zeros(self.latent_dim), 1.0).to_event(1)

    @full_precision
    def _get_posterior(self) -> dist.Distribution:
        def param(name: str, init: Array, **options: dist.constraints.Constraint) -> PyTree:
            return numpyro.param(f"{self.prefix}_{name}", init, **options)

        center = jax.lax.stop_gradient(param("center", self._init_latent))
        factor = jax.lax.stop_gradient(param("factor", self._init_factor))
        ones = jnp.ones_like(self._init_latent)
        loc = param("loc", jnp.zeros_like(ones))
        if self.rank == "full":
            constraint = self.scale_tril_constraint
            inner = param("scale_tril", jnp.eye(self.latent_dim), constraint=constraint)
        else:
            constraint = dist.constraints.softplus_positive
            inner = jnp.diag(param("scale", ones, constraint=constraint))
        affine = LowerCholeskyAffine(center + factor @ loc, jnp.tril(factor @ inner))
        return dist.TransformedDistribution(self.get_base_dist(), affine)

    @property
    def landscape(self) -> Landscape | None:
        """The compiled log-density, where the guide met its model with data."""
        return None if self.starts is None else self.starts.landscape

    def draws(self, params: ParamMap, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points u [n, d] of standard Normal noise [n, d], and the logarithm of their density, nats."""
        mean, factor = self.normal(params)
        return mean + noise @ factor.T, _log_prob(noise) - np.linalg.slogdet(factor)[1]

    def normal(self, params: ParamMap) -> tuple[np.ndarray, np.ndarray]:
        """Mean [d] and lower triangular factor [d, d] of u, of unconstrained parameters; no program is compiled."""
        of = lambda name: np.asarray(params[f"{self.prefix}_{name}"], float)
        d = self.latent_dim
        if self.rank == "full":
            inner, free = np.eye(d), of("scale_tril")
            inner[np.tril_indices(d, -1)] = free[:-d]
            inner = inner * np.logaddexp(free[-d:], 0.0)[:, None]
        else:
            inner = np.diag(np.logaddexp(of("scale"), 0.0))
        factor = of("factor")
        return of("center") + factor @ of("loc"), np.tril(factor @ inner)

    @property
    def fixed(self) -> tuple[str, str]:
        """The parameters that no gradient changes."""
        return f"{self.prefix}_center", f"{self.prefix}_factor"

    def get_transform(self, params: ParamMap) -> LowerCholeskyAffine:
        """The affine map from the standard Normal to u."""
        posterior: Any = numpyro.handlers.substitute(self._get_posterior, dict(params))
        return posterior().transforms[0]

    def _unpack_and_constrain(self, latent_sample: Array, params: ParamMap) -> dict[str, Array]:
        each = self.space.choices
        for _ in range(jnp.ndim(latent_sample) - 1):
            each = jax.vmap(each)
        return each(latent_sample)


class AutoMeanField(AutoDiagonalNormal):
    """A Normal without correlations on the unconstrained values of all continuous sites of a model, one vector of them.

    It begins at the median of prior draws, where the density is finite there, with standard deviations of 0.1. Parameters are
    "auto_loc" and "auto_scale". What it computes does not grow with the number of sites, as that of `AutoNormal` does.

    Args:
        model: a program whose latent sites are continuous.
        hidden: continuous sites that are left to the model (missing cells).
        prefix: of the names of its parameters and of its site.

    Attributes:
        landscape: the compiled log-density, where the guide met its model with data in this process; else None.
        blocks: as of `AutoWhitenedNormal`.
    """

    landscape: Landscape | None = None
    blocks: RowBlocks | None = None

    def __init__(
        self, model: ModelFn, *, hidden: tuple[str, ...] = (), prefix: str = "auto"
    ) -> None:
        self.hidden = hidden
        super().__init__(as_program(model), prefix=prefix)

    meet = AutoWhitenedNormal.meet

    def _setup_prototype(self, *args: PyTree, **kwargs: PyTree) -> None:
        key = _fresh_key()
        args = as_tuple(args, kwargs)
        with no_handlers():
            self.space = _space(self, args)
            point = np.zeros(self.space.dimension)
            if is_concrete((args, key)):
                self.landscape, point = start_without_search(self.space, args, key, self.blocks)
        self.latent_dim, self._init_latent = self.space.dimension, _single(point)
        self._unpack_latent = self.space.unravel
        self.prototype_trace = _prototypes(self.space)

    def __getstate__(self) -> dict[str, PyTree]:
        # Without compiled functions and data.
        return super().__getstate__() | {"landscape": None, "blocks": None}

    _unpack_and_constrain = AutoWhitenedNormal._unpack_and_constrain

    def draws(self, params: ParamMap, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As those of `AutoWhitenedNormal`."""
        of = lambda name: np.asarray(params[f"{self.prefix}_{name}"], float)
        loc, scale = of("loc"), np.logaddexp(of("scale"), 0.0)
        return loc + noise * scale, _log_prob(noise) - np.log(scale).sum()


OwnGuide = AutoWhitenedNormal | AutoMeanField


def _fresh_key() -> Key:
    """`numpyro.prng_key()`, made on the host."""
    seeds = [handler for handler in handler_stack() if type(handler) is numpyro.handlers.seed]
    if not seeds:
        found: PyTree = numpyro.prng_key()
        return found
    before: PyTree = seeds[-1].rng_key
    seeds[-1].rng_key, key = split(before)
    return key


def _space(guide: OwnGuide, args: tuple) -> Space:
    """Coordinates of a guide's model; of blocks of rows the arguments are those of the first one."""
    blocks = guide.blocks
    model = guide.model if blocks is None else rescale_plates(guide.model, blocks.sizes)
    return Space(model, args, guide.hidden)


def _log_prob(noise: np.ndarray) -> np.ndarray:
    return -0.5 * (noise**2 + math.log(2 * math.pi)).sum(1)


def _prototypes(space: Space) -> dict[str, Message]:
    """What NumPyro's autoguides look up of sites."""
    return {
        name: {"type": "sample", "name": name, "is_observed": False, "fn": fn}
        for name, fn in space.laws.items()
    }


def _single(x: np.ndarray) -> Array:
    return jax.device_put(np.asarray(x, jnp.result_type(float)))  # without a compiled program
