"""What a model says of one local site: its prior, and the negative log-likelihood of each of its rows.

Terms: model p, local site x with one row per element of its batch axes, choices of all other latent sites. Output: functions of x
alone, free of handlers, that may be differentiated and vectorised: the loss l_i(x_i) of every row, minus the log-probs of the
sites that x_i moves, and the observations whose Jacobian is a factor of the generalised Gauss-Newton matrix (`_jacobian.py`).

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
from jaxtyping import PyTree
from numpyro.primitives import Messenger

from ... import ppl
from ...ppl._compat import no_handlers
from ...ppl._precision import full_precision
from ...ppl._types import Message
from ...ppl.distributions import is_masked
from ...ppl.strategies import element
from ...ppl.traces import ParamCollector, Runner
from .._depends import depends
from ..objectives._analytic_kl import Laws
from ._jacobian import Observations, Statements, rows
from ._local_site import NormalPrior

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class LocalModel:
    """One local site of a model, all else fixed. Rows are the site's batch axes; x is [*batch, d].

    Attributes:
        site: name.
        info: its description.
        law: its law in the model, given the choices.
        losses: `x -> [*batch]`, negative log-likelihood of each row, nats.
        observations: what the Gauss-Newton matrix of each row is made of.
        params: constrained values of the model's parameters.
    """

    site: str
    info: ppl.SiteInfo
    law: dist.Distribution
    losses: Callable[[Array], Array]
    observations: Observations
    params: dict[str, PyTree]

    def gradient(self, x: Array) -> Array:
        """Gradient of each row's loss, [*batch, d]."""
        return jax.grad(lambda x: self.losses(x).sum())(x)

    @full_precision
    def hessian(self, x: Array) -> Array:
        """Hessian of each row's loss, [*batch, d, d]; the products of the loss count in full, too: it must stay symmetric."""
        column = lambda e: jax.jvp(self.gradient, (x,), (jnp.broadcast_to(e, x.shape),))[1]
        return jax.vmap(column, out_axes=-1)(jnp.eye(x.shape[-1], dtype=x.dtype))


def read(
    model: ppl.Program,
    site: str,
    choices: dict[str, Array],
    args: tuple,
    observations: Collection[str] | None,
    freeze: Callable[..., PyTree],
    jacobian: str = "whole",
) -> LocalModel:
    """The local site of a model at the given choices of all other latent sites.

    Args:
        model: the program.
        site: its local site.
        choices: values of the other latent sites.
        args: the program's arguments.
        observations: names of the sites that count in the loss; None for all that the local site moves.
        freeze: applied to all parameters and choices that the loss is made of (identity, or stop_gradient).
        jacobian: "by_observation": each observation may be given a value of the site of its own.
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
    if is_masked(law):
        raise ValueError(
            f"Site '{site}': local_laplace takes no masked site, whose rows would count in the guide but not in the model. Mask "
            "the observations instead: a row without any keeps its prior."
        )
    batch = info.batch_shape
    if len(info.event_shape) > 1:
        raise ValueError(
            f"Site '{site}': local_laplace takes numbers and vectors, but one event has shape {info.event_shape}. Draw a flat "
            "vector, e.g. dist.Normal(loc.ravel(), scale.ravel()).to_event(1), and reshape the value."
        )
    fixed = freeze({name: value for name, value in choices.items() if name != site})
    values = freeze(params.values)

    def run(x: Array) -> tuple[ppl.Trace, Statements]:
        value = x.reshape(*x.shape[:-1], *info.event_shape)
        statements = Statements({site: x.shape[:-1]})
        return _apart(model, Runner(None, {**fixed, site: value}), args, values, statements)

    start = trace.choices[site].reshape(*batch, -1)
    below = _below(run, start, site)
    names = _chosen(below, observations, site)
    for name in names:
        _check_rows(trace.sites[name], info)

    def losses(x: Array) -> Array:
        trace, _ = run(x)
        total = jnp.zeros(batch)
        for name in names:
            total = total - rows(trace.log_probs[name], batch).sum(-1)
        return total

    points = None if jacobian == "whole" else _points(names, trace, info)
    parts = Observations(lambda x: run(x)[1], names, site, points)
    return LocalModel(site, info, law, losses, parts, params.values)


def law_at(
    model: ppl.Program, site: str, choices: dict[str, Array], args: tuple, params: dict[str, PyTree]
) -> dist.Distribution:
    """The law of a site in the model at given choices, apart from all handlers."""
    runner = Runner(jax.random.key(0), choices)
    _, statements = _apart(model, runner, args, params, Statements())
    return statements.found[site][0]


def _apart(
    model: ppl.Program,
    runner: Runner,
    args: tuple,
    params: dict[str, PyTree],
    statements: Statements,
) -> tuple[ppl.Trace, Statements]:
    """A run of the model apart from all handlers, at given parameters: pure, inside any transformation."""
    with no_handlers(), _GivenParams(params):
        return statements.watch(model)._run(runner, args, {}), statements


class _GivenParams(Messenger):
    """Give param statements their constrained values."""

    def __init__(self, values: dict[str, PyTree]) -> None:
        super().__init__()
        self.values = values

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "param":
            msg["value"] = self.values[msg["name"]]


def normal_prior(law: dist.Distribution, site: str) -> NormalPrior:
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

    def process_message(self, msg: Message) -> None:
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
            f"local_laplace: there is no latent site '{site}' in the model; its latent sites are {sorted(trace.choices)}. Name "
            "one of these."
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


def _points(names: list[str], trace: ppl.Trace, local: ppl.SiteInfo) -> tuple[int, ...]:
    """The one batch shape of the observations."""
    shapes = {name: trace.sites[name].batch_shape for name in names}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"Site '{local.name}': jacobian='by_observation' gives the site the batch shape of its observations, but they have "
            f"several: {shapes}. Name those of one plate in observations=, or use jacobian='whole'."
        )
    return next(iter(shapes.values()))
