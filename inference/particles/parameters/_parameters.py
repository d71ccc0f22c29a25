"""Some latent sites of a program as its parameters: a prior on R^d, while particles do the rest.

Input: a program and names of latent sites before its scans. Output: unconstrained coordinates u of these sites with their prior
density, and the program in which they have given values.

Invariant: exp(log_prior + log_jacobian) is the density of u, whatever else the program draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpyro.handlers
from jaxtyping import PyTree

from .... import ppl
from ....ppl._compat import fresh_caches, is_concrete, jaxpr_as_fun
from ..._depends import depends
from ..._supports import transforms_of

Array = jax.Array
NUM_PRIOR_DRAWS = 256  # for the scales that a chain starts with


@dataclasses.dataclass(frozen=True)
class Parameters:
    """The parameters in unconstrained coordinates u [d].

    Attributes:
        dimension: d.
        shapes: site -> shape of its value.
        draw: `key -> u`, from the prior.
        values: u -> site -> value.
        coordinates: site -> value (other sites are ignored) -> u.
        log_prior: u -> log prior density of the values, nats.
        log_jacobian: u -> log |d values / d u|.
    """

    dimension: int
    shapes: dict[str, tuple[int, ...]]
    draw: Callable[[Array], Array]
    values: Callable[[Array], dict[str, Array]]
    coordinates: Callable[[Mapping[str, Array]], Array]
    log_prior: Callable[[Array], Array]
    log_jacobian: Callable[[Array], Array]

    def check_start(self, method: str, init: Mapping[str, Array]) -> None:
        """Refuse first values of a wrong shape or without prior density: a chain might never leave them."""
        for name, shape in self.shapes.items():
            if jnp.shape(init[name]) != shape:
                raise ValueError(
                    f"{method}: init of '{name}' has shape {jnp.shape(init[name])}, and the site has {shape}. Give one value."
                )
        log_prior = self.log_prior(self.coordinates(init))
        if is_concrete(log_prior) and not bool(jnp.isfinite(log_prior)):
            raise ValueError(
                f"{method}: init lies where the prior of {list(self.shapes)} has no density, and the chain might stay there. "
                "Start inside the support, or leave init out."
            )

    def prior_covariance(self, key: Array) -> Array:
        """A diagonal covariance from the quartiles of the prior, which a heavy tail leaves finite."""
        draws = jax.vmap(self.draw)(jax.random.split(key, NUM_PRIOR_DRAWS))
        low, high = jnp.quantile(draws, jnp.array([0.25, 0.75]), axis=0)
        return jnp.diag(((high - low) / 1.35) ** 2)


def make_parameters(
    method: str, program: ppl.Program, args: tuple[PyTree, ...], names: Sequence[str]
) -> Parameters:
    """The sites `names` of `program(*args)` as parameters; `method` is who asks, for messages.

    Raises:
        ValueError: a site is missing, in or after control flow, or discrete; its prior depends on a latent site that is no
            parameter, or its support on another parameter.
    """
    names = list(dict.fromkeys(names))
    shapes = jax.eval_shape(lambda key: program.simulate(key, *args), jax.random.key(0))
    _check_sites(method, shapes, names)
    template = {n: jnp.zeros(shapes.choices[n].shape, shapes.choices[n].dtype) for n in names}

    def log_prior_of(key: Array, values: Mapping[str, Array]) -> Array:
        log_probs = program.generate(key, values, *args)[0].log_probs
        return sum((jnp.sum(log_probs[n]) for n in names), jnp.zeros(()))

    closed = jax.make_jaxpr(log_prior_of)(jax.random.key(0), template)
    if any(depends(closed.jaxpr, [True] + [False] * len(names))):
        raise ValueError(
            f"{method}: the prior of the parameters {names} depends on a latent site that is none of them. Name that site in "
            "'parameters', too."
        )
    transforms = transforms_of(method, program, args, template)
    base = {n: jax.eval_shape(transforms[n].inv, template[n]) for n in names}
    flat, unflatten = jax.flatten_util.ravel_pytree(
        jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), base)
    )

    def values(u: Array) -> dict[str, Array]:
        return {n: transforms[n](x) for n, x in unflatten(u).items()}

    def coordinates(values: Mapping[str, Array]) -> Array:
        return jax.flatten_util.ravel_pytree({n: transforms[n].inv(values[n]) for n in names})[0]

    def log_prior(u: Array) -> Array:
        leaves = jax.tree.leaves(values(u))
        return jaxpr_as_fun(closed)(jax.random.key(0), *leaves)[0]

    def log_jacobian(u: Array) -> Array:
        x, v = values(u), unflatten(u)
        terms = [jnp.sum(transforms[n].log_abs_det_jacobian(v[n], x[n])) for n in names]
        return sum(terms, jnp.zeros(()))

    def draw(key: Array) -> Array:
        return coordinates(program.simulate(key, *args).choices)

    value_shapes = {n: x.shape for n, x in template.items()}
    return Parameters(flat.size, value_shapes, draw, values, coordinates, log_prior, log_jacobian)


def given(
    program: ppl.Program, proposal: ppl.Program | None, values: Mapping[str, Array]
) -> tuple[ppl.Program, ppl.Program | None]:
    """The program with the parameters observed, and the proposal for the other sites."""
    guide = None if proposal is None else _fixed(proposal, values)
    return ppl.condition(program, values), guide


def _fixed(proposal: ppl.Program, values: Mapping[str, Array]) -> ppl.Program:
    """The proposal given `values`, whose sites are no longer its own."""

    def fixed(*args: PyTree, **kwargs: PyTree) -> PyTree:
        with (
            numpyro.handlers.block(hide=list(values)),
            numpyro.handlers.substitute(data=dict(values)),
            fresh_caches(),
        ):
            return proposal(*args, **kwargs)

    return ppl.as_program(fixed)


def _check_sites(method: str, trace: ppl.Trace, names: list[str]) -> None:
    if not names:
        raise ValueError(f"{method}: 'parameters' is empty; name the latent sites to infer.")
    order = list(trace.sites)
    loops = [
        i for i, n in enumerate(order) if any(r.kind == "scan" for r in trace.sites[n].regions)
    ]
    first_loop = min(loops, default=len(order))
    candidates = [
        n for n in order[:first_loop] if trace.sites[n].kind == "latent" and not trace.sites[n].regions
    ]  # fmt: skip
    for name in names:
        info = trace.sites.get(name)
        if info is None or info.kind != "latent":
            what = "there is no such site" if info is None else f"it is {info.kind}"
            raise ValueError(
                f"{method}: parameter '{name}' must be a latent site, but {what}. Candidates are {candidates}."
            )
        if name not in candidates:
            where = f"in a {info.regions[0].kind}" if info.regions else "after a scan"
            raise ValueError(
                f"{method}: parameter '{name}' stands {where}; a parameter is drawn once, before every scan. Choose from "
                f"{candidates}."
            )
        if not jnp.issubdtype(trace.choices[name].dtype, jnp.floating):
            raise ValueError(
                f"{method}: parameter '{name}' is discrete ({info.distribution}), and parameters move in continuous "
                "coordinates. Leave it to the particles, or sum it out."
            )
