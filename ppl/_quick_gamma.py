"""Traced programs without the rejection sampler of Gamma variates."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ._compat import ClosedJaxpr, Jaxpr

NAME = "random_gamma"


def without_rejection(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same program, same variables, with Gamma variates drawn approximately and without a loop.

    Wilson and Hilferty's cube of a Normal number at concentration a + 1, times u^(1/a): within some percent of the law.
    Gamma, Beta, Dirichlet and all that is made of them go through one primitive, whose sampler compiles for seconds.
    """
    return closed.replace(jaxpr=_rewritten(closed.jaxpr))


def _rewritten(jaxpr: Jaxpr) -> Jaxpr:
    eqns = [_quick(eqn) if eqn.primitive.name == NAME else _inside(eqn) for eqn in jaxpr.eqns]
    return jaxpr.replace(eqns=eqns)


def _inside(eqn: Any) -> Any:
    """The equation with its inner programs rewritten, if they need it."""
    changed = {k: _parameter(v) for k, v in eqn.params.items() if _needs(v)}
    return eqn.replace(params={**eqn.params, **changed}) if changed else eqn


def _needs(parameter: Any) -> bool:
    if isinstance(parameter, tuple | list):
        return any(_needs(p) for p in parameter)
    jaxpr = parameter.jaxpr if isinstance(parameter, ClosedJaxpr) else parameter
    if not isinstance(jaxpr, Jaxpr):
        return False
    return any(
        eqn.primitive.name == NAME or any(_needs(p) for p in eqn.params.values())
        for eqn in jaxpr.eqns
    )


def _parameter(parameter: Any) -> Any:
    if isinstance(parameter, tuple | list):
        return type(parameter)(_parameter(p) if _needs(p) else p for p in parameter)
    if isinstance(parameter, ClosedJaxpr):
        return parameter.replace(jaxpr=_rewritten(parameter.jaxpr))
    return _rewritten(parameter)


def _quick(eqn: Any) -> Any:
    """An equation that calls the approximate sampler in place of the exact one."""
    draw = jax.jit(functools.partial(_approximate, log_space=eqn.params["log_space"]))
    inputs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    call = jax.make_jaxpr(draw)(*inputs).eqns[0]
    return eqn.replace(primitive=call.primitive, params=call.params)


def _approximate(keys: jax.Array, a: jax.Array, *, log_space: bool) -> jax.Array:
    """Draws of Gamma(a, 1), or their logarithms; the axes of `keys` are the first ones of `a`."""

    def one(key: jax.Array, a: jax.Array) -> jax.Array:
        k1, k2 = jax.random.split(key)
        d = a + 2 / 3
        root = 1 + jax.random.normal(k1, a.shape, a.dtype) / (3 * jnp.sqrt(d))
        power = jnp.log(jax.random.uniform(k2, a.shape, a.dtype, 1e-6)) / a
        return jnp.log(d) + 3 * jnp.log(jnp.maximum(root, 0.01)) + power

    for _ in range(keys.ndim):
        one = jax.vmap(one)
    draws = one(keys, a)
    return draws if log_space else jnp.exp(draws)
