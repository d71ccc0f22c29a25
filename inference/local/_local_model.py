"""What a model says of one local site: its prior, and the negative log-likelihood of each of its rows.

Terms: model p, local site x with one row per element of its batch axes, choices of all other latent sites. Output: functions of x
alone, free of handlers, that may be differentiated and vectorised: the loss l_i(x_i) of every row, minus the log-probs of the
sites that x_i moves, and the outputs whose Jacobian is a factor of the generalised Gauss-Newton matrix.

Invariants: log-probs are those of one row, unscaled by subsampling outside; parameters are met as plain arrays before any
transformation; a site that is moved by x but lies outside of its plates is refused, since it would tie the rows together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.primitives import Messenger

from ... import ppl
from ...ppl._compat import no_handlers
from ...ppl._params import ParamCollector
from ...ppl._recorder import _is_masked
from ...ppl._runner import Runner
from ...ppl._strategy import element
from ..objectives._analytic_kl import Laws
from ..particles._depends import depends
from ._fisher import ROOTS
from ._local_site import NormalPrior
from ._truncated import truncated_factor

Array = jax.Array
_OTHER_CURVATURE = "Use curvature='hessian' or 'sgld_variance'."


@dataclasses.dataclass(frozen=True)
class LocalModel:
    """One local site of a model, all else fixed. Rows are the site's batch axes; x is [*batch, d].

    Attributes:
        site: name.
        info: its description.
        law: its law in the model, given the choices.
        losses: `x -> [*batch]`, negative log-likelihood of each row, nats.
        outputs: `(x, z) -> [*batch, m]`, whose Jacobian U_i in x, at z = x, gives U_i'U_i, the Gauss-Newton matrix of each row.
        params: constrained values of the model's parameters.
    """

    site: str
    info: ppl.SiteInfo
    law: dist.Distribution
    losses: Callable[[Array], Array]
    outputs: Callable[[Array, Array], Array]
    params: dict[str, Any]

    def gradient(self, x: Array) -> Array:
        """Gradient of each row's loss, [*batch, d]."""
        return jax.grad(lambda x: self.losses(x).sum())(x)

    def hessian(self, x: Array) -> Array:
        """Hessian of each row's loss, [*batch, d, d]."""
        column = lambda e: jax.jvp(self.gradient, (x,), (jnp.broadcast_to(e, x.shape),))[1]
        return jax.vmap(column, out_axes=-1)(jnp.eye(x.shape[-1], dtype=x.dtype))

    def factor(self, x: Array, scale: Array | None = None, rank: int | None = None) -> Array:
        """Factor U of each row's Gauss-Newton matrix, [*batch, m, d]; of m = `rank` rows where there are more.

        Args:
            x: where the matrix is taken.
            scale: of the prior, [*batch, d]; it decides which directions a given rank keeps (`truncated_factor`).
            rank: None: no limit.
        """
        outputs = lambda at: self.outputs(at, x)
        d = x.shape[-1]
        if rank is not None and rank < min(jax.eval_shape(outputs, x).shape[-1], d):
            assert scale is not None
            return truncated_factor(outputs, x, scale, rank)
        out, pull = jax.vjp(outputs, x)
        m = out.shape[-1]
        if m <= d:
            row = lambda e: pull(jnp.broadcast_to(e, out.shape))[0]
            return jax.vmap(row, out_axes=-2)(jnp.eye(m, dtype=out.dtype))
        column = lambda e: jax.jvp(outputs, (x,), (jnp.broadcast_to(e, x.shape),))[1]
        return jax.vmap(column, out_axes=-1)(jnp.eye(d, dtype=x.dtype))


def read(
    model: ppl.Program,
    site: str,
    choices: dict[str, Array],
    args: tuple,
    observations: Collection[str] | None,
    freeze: Callable[[Any], Any],
) -> LocalModel:
    """The local site of a model at the given choices of all other latent sites.

    Args:
        model: the program.
        site: its local site.
        choices: values of the other latent sites.
        args: the program's arguments.
        observations: names of the sites that count in the loss; None for all that the local site moves.
        freeze: applied to all parameters and choices that the loss is made of (identity, or stop_gradient).
    """
    params, laws, plates = ParamCollector(), Laws(), _RefuseSubsampling()
    with params, plates:
        # Here every parameter passes through the handlers outside; the drawn value of the site serves its shape only.
        trace = laws.watch(model)._run(Runner(jax.random.key(0), choices), args, {})
    _check_latents(trace, site, choices)
    info = trace.sites[site]
    if site not in laws.found or info.regions:
        raise ValueError(
            f"Site '{site}': local_laplace takes sites in plates, but it stands in {info.regions[0].kind}. Draw it before "
            "the region and index it inside."
        )
    law = laws.found[site][0]
    if _is_masked(law):
        raise ValueError(
            f"Site '{site}': local_laplace takes no masked site, whose rows would count in the guide but not in the model. Mask "
            "the observations instead: a row without any keeps its prior."
        )
    shape, batch = trace.choices[site].shape, info.batch_shape
    if len(info.event_shape) > 1:
        raise ValueError(
            f"Site '{site}': local_laplace takes numbers and vectors, but one event has shape {info.event_shape}. Draw a flat "
            "vector, e.g. dist.Normal(loc.ravel(), scale.ravel()).to_event(1), and reshape the value."
        )
    fixed = freeze({name: value for name, value in choices.items() if name != site})
    values = freeze(params.values)

    def run(x: Array) -> tuple[ppl.Trace, Laws]:
        return _apart(model, Runner(None, {**fixed, site: x.reshape(shape)}), args, values)

    start = trace.choices[site].reshape(*batch, -1)
    below = _below(run, start, site)
    names = _chosen(below, observations, site)
    for name in names:
        _check_rows(trace.sites[name], info)

    def losses(x: Array) -> Array:
        trace, _ = run(x)
        total = jnp.zeros(batch)
        for name in names:
            total = total - _rows(trace.log_probs[name], batch).sum(-1)
        return total

    def all_outputs(x: Array, z: Array) -> tuple[list[Array], list[Array]]:
        parts, constants = [], []
        (_, laws), (_, laws_at) = run(x), run(z)
        for name in names:
            roots, fixed = _roots(name, laws, laws_at)
            depth = len(trace.sites[name].batch_shape)
            parts += [_rows(part, batch, part.ndim - depth) for part in roots]
            constants += fixed
        return parts, constants

    def outputs(x: Array, z: Array) -> Array:
        jaxpr = jax.make_jaxpr(all_outputs)(start, start)
        moved = depends(jaxpr.jaxpr, [True, False])
        parts, constants = all_outputs(x, z)
        if any(moved[len(parts) :]):
            raise ValueError(
                f"Site '{site}' moves a parameter of {names} that a Gauss-Newton curvature takes as fixed: the covariance of a "
                f"MultivariateNormal, or df or scale of a StudentT. {_OTHER_CURVATURE}"
            )
        return jnp.concatenate([part for part, m in zip(parts, moved, strict=False) if m], -1)

    return LocalModel(site, info, law, losses, outputs, params.values)


def law_at(
    model: ppl.Program, site: str, choices: dict[str, Array], args: tuple, params: dict[str, Any]
) -> dist.Distribution:
    """The law of a site in the model at given choices, apart from all handlers."""
    _, laws = _apart(model, Runner(jax.random.key(0), choices), args, params)
    return laws.found[site][0]


def _apart(
    model: ppl.Program, runner: Runner, args: tuple, params: dict[str, Any]
) -> tuple[ppl.Trace, Laws]:
    """A run of the model apart from all handlers, at given parameters: pure, inside any transformation."""
    laws = Laws()
    with no_handlers(), _Given(params):
        return laws.watch(model)._run(runner, args, {}), laws


class _Given(Messenger):
    """Give param statements their constrained values."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__()
        self.values = values

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "param":
            msg["value"] = self.values[msg["name"]]


def normal_prior(law: Any, site: str) -> NormalPrior:
    """Location and scale of a normal law with flattened events, [*batch, d].

    Raises:
        ValueError: the law is not normal.
    """
    base: Any = element(law)[0]
    kind = type(base)
    d = law.event_shape[0] if law.event_shape else 1
    flat: Any = (*law.batch_shape, d)
    if issubclass(kind, dist.Normal):
        shape = law.batch_shape + law.event_shape
        loc, scale = (jnp.broadcast_to(x, shape).reshape(flat) for x in (base.loc, base.scale))
        return NormalPrior(loc, scale, None)
    if issubclass(kind, dist.MultivariateNormal) and law.event_dim == 1:
        loc = jnp.broadcast_to(base.loc, flat)
        return NormalPrior(loc, None, jnp.broadcast_to(base.scale_tril, (*flat, d)))
    raise ValueError(
        f"Site '{site}': local_laplace needs a normal prior (Normal, with to_event(1) for vectors, or MultivariateNormal), but "
        f"its law is {type(base).__name__}. Write the site as a transformed normal one."
    )


class _RefuseSubsampling(Messenger):
    """Refuse plates that subsample by themselves: the rows that a guide's potentials are made of must be those of the model."""

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "plate":
            size, own = msg["args"]
            if own not in (None, size):
                raise ValueError(
                    f"Plate '{msg['name']}' subsamples {own} of {size} rows by itself, and local_laplace would see other rows "
                    "than the bound. Give the plate the rows of one batch and use fit(..., subsample={...}) or plate_sizes."
                )


def _check_latents(trace: ppl.Trace, site: str, choices: dict[str, Array]) -> None:
    if site not in trace.choices:
        raise ValueError(
            f"local_laplace: there is no latent site '{site}' in the model; its latent sites are {sorted(trace.choices)}."
        )
    missing = sorted(set(trace.choices) - set(choices) - {site})
    if missing or site in choices:
        what = f"misses {missing}" if missing else f"draws '{site}' itself"
        raise ValueError(
            f"local_laplace: the guide of the other sites {what}. It has to draw every latent site of the model but "
            f"'{site}', which is drawn from its Laplace approximation."
        )


def _below(run: Callable, start: Array, site: str) -> list[str]:
    """The sites whose log-prob depends on the local site, in program order."""
    names: list[str] = []

    def log_probs(x: Array) -> list[Array]:
        found = {name: lp for name, lp in run(x)[0].log_probs.items() if name != site}
        names[:] = list(found)
        return list(found.values())

    jaxpr = jax.make_jaxpr(log_probs)(start)
    return [
        name for name, is_moved in zip(names, depends(jaxpr.jaxpr, [True]), strict=True) if is_moved
    ]


def _chosen(below: list[str], observations: Collection[str] | None, site: str) -> list[str]:
    if observations is None:
        return below
    wrong = [name for name in observations if name not in below]
    if wrong or not observations or isinstance(observations, str):
        raise ValueError(
            f"local_laplace: argument 'observations' is {observations!r}, but it has to name sites that '{site}' moves: {below}."
        )
    return [name for name in below if name in observations]


def _check_rows(info: ppl.SiteInfo, local: ppl.SiteInfo) -> None:
    for axis in range(1, len(local.batch_shape) + 1):
        size, name = local.batch_shape[-axis], local.dims[-axis]
        if name is None and size == 1:
            continue
        other = (
            (*info.dims[-axis:][:1], *info.batch_shape[-axis:][:1])
            if axis <= len(info.dims)
            else ()
        )
        if other != (name, size):
            raise ValueError(
                f"Site '{info.name}' depends on the local site '{local.name}' but has batch axes {info.dims} {info.batch_shape}, "
                f"not the rows {local.dims} {local.batch_shape} of '{local.name}': it ties them together, and no row has a "
                "posterior of its own. Move it into the plate, or give the local site another guide."
            )


def _rows(x: Array, batch: tuple[int, ...], trailing: int = 0) -> Array:
    """One row per element of `batch` and all else in one last axis; the `trailing` last axes of x are event axes."""
    depth = x.ndim - trailing
    x = x.reshape((1,) * max(0, len(batch) - depth) + x.shape)
    depth = max(depth, len(batch))
    first = depth - len(batch)
    rows = [first + i for i, size in enumerate(batch) if size > 1]
    rest = [axis for axis in range(x.ndim) if axis not in rows]
    return x.transpose(*rows, *rest).reshape(*batch, -1)


def _roots(name: str, laws: Laws, laws_at: Laws) -> tuple[list[Array], list[Array]]:
    """Outputs of one site, masked, and the parameters that must not move."""
    if name not in laws.found:
        raise ValueError(
            f"Site '{name}': a Gauss-Newton curvature needs its law, which is not at hand inside scan, cond or particles. "
            f"{_OTHER_CURVATURE}"
        )
    fn = laws.found[name][0]
    base, elements = element(fn)
    if type(base).__name__ not in ROOTS:
        raise ValueError(
            f"Site '{name}': a Gauss-Newton curvature knows the Fisher information of {sorted(ROOTS)}, not of "
            f"{type(base).__name__}. {_OTHER_CURVATURE}"
        )
    roots, fixed = ROOTS[type(base).__name__]
    mask = _element_mask(fn)
    parts = []
    for part in roots(base, element(laws_at.found[name][0])[0]):
        own = part.shape[len(base.batch_shape) :]  # an event axis (logits, vectors)
        part = jnp.broadcast_to(part, (*elements, *own))
        parts.append(jnp.where(mask.reshape(*mask.shape, *(1,) * len(own)), part, 0.0))
    return parts, [jnp.asarray(getattr(base, parameter)) for parameter in fixed]


def _element_mask(fn: Any) -> Array:
    """Where the log-prob of each element counts: batch axes, then axes of to_event."""
    mask = jnp.ones(fn.batch_shape, bool)
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        if isinstance(fn, dist.MaskedDistribution):
            mask = mask & jnp.broadcast_to(jnp.asarray(fn._mask, bool), fn.batch_shape)
        if isinstance(fn, dist.Independent):
            shape = (*mask.shape, *fn.base_dist.batch_shape[len(fn.batch_shape) :])
            mask = jnp.broadcast_to(
                mask.reshape(*mask.shape, *(1,) * fn.reinterpreted_batch_ndims), shape
            )
        fn = fn.base_dist
    return mask
