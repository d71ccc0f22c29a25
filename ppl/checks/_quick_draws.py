"""Traced programs with approximate samplers, which compile in a fraction of the time."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._compat import ClosedJaxpr, Equation, Jaxpr

GAMMA = "random_gamma"
QUANTILE = "erf_inv"
SPREAD = 1.7
NORMAL = "_normal_real"  # the sampler; elsewhere the function is what the program asked for


def with_quick_draws(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The program, with the same variables, with Normal and Gamma variates drawn approximately.

    Normal: a Logistic number of nearly the same spread, as its quantiles are two logarithms and not three polynomials. Gamma:
    Wilson and Hilferty's cube of a Normal number at concentration a + 1, times u^(1/a), within some percent of the law and
    without a loop; Beta, Dirichlet and all that is made of them go through that sampler. Both move continuously with their
    parameters.
    """
    return closed.replace(jaxpr=_rewritten(closed.jaxpr, False))


def _rewritten(jaxpr: Jaxpr, is_normal: bool) -> Jaxpr:
    return jaxpr.replace(eqns=[_replaced(eqn, is_normal) for eqn in jaxpr.eqns])


def _replaced(eqn: Equation, is_normal: bool) -> Equation:
    if eqn.primitive.name == GAMMA:
        return _call(eqn, functools.partial(_gamma, log_space=eqn.params["log_space"]))
    if eqn.primitive.name == QUANTILE:
        return _call(eqn, _quantile) if is_normal else eqn
    is_normal |= eqn.params.get("name") == NORMAL
    changed = {k: _parameter(v, is_normal) for k, v in eqn.params.items() if _needs(v)}
    return eqn.replace(params={**eqn.params, **changed}) if changed else eqn


def _needs(parameter: object) -> bool:
    """Whether something is to be replaced inside, as far as is easily told."""
    if isinstance(parameter, tuple | list):
        return any(_needs(p) for p in parameter)
    jaxpr = parameter.jaxpr if isinstance(parameter, ClosedJaxpr) else parameter
    if not isinstance(jaxpr, Jaxpr):
        return False
    return any(
        eqn.primitive.name in (GAMMA, QUANTILE) or any(_needs(p) for p in eqn.params.values())
        for eqn in jaxpr.eqns
    )


def _parameter(parameter: PyTree, is_normal: bool) -> PyTree:
    if isinstance(parameter, tuple | list):
        return type(parameter)(_parameter(p, is_normal) if _needs(p) else p for p in parameter)
    if isinstance(parameter, ClosedJaxpr):
        return parameter.replace(jaxpr=_rewritten(parameter.jaxpr, is_normal))
    return _rewritten(parameter, is_normal)


def _call(eqn: PyTree, fn: Callable[..., PyTree]) -> Equation:
    """An equation that calls the approximation in place of the exact operation."""
    inputs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    call = jax.make_jaxpr(jax.jit(fn))(*inputs).eqns[0]
    return eqn.replace(primitive=call.primitive, params=call.params)


def quick_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Numbers nearly of the standard Normal law."""
    return jax.random.logistic(key, shape) / SPREAD


def quick_integers(key: jax.Array, shape: tuple[int, ...], num: int) -> jax.Array:
    """Integers from 0 to num - 1 (below 2^31 - 1 of more), nearly uniform where they are few."""
    return (jax.random.bits(key, shape, np.uint32) % np.uint32(min(num, 2**31 - 1))).astype(int)


def _quantile(x: jax.Array) -> jax.Array:
    """Quantile of Logistic(scale 1 / SPREAD), in place of the Normal one's: erf_inv(x) = quantile((1 + x) / 2) / sqrt(2)."""
    return jax.lax.atanh(x) * (2**0.5 / SPREAD)


def _gamma(keys: jax.Array, a: jax.Array, *, log_space: bool) -> jax.Array:
    """Draws of Gamma(a, 1), or their logarithms; the axes of `keys` are the first ones of `a`."""

    def one(key: jax.Array, a: jax.Array) -> jax.Array:
        k1, k2 = jax.random.split(key)
        d = a + 2 / 3
        root = 1 + quick_normal(k1, a.shape).astype(a.dtype) / (3 * jnp.sqrt(d))
        power = jnp.log(jax.random.uniform(k2, a.shape, a.dtype, 1e-6)) / a
        return jnp.log(d) + 3 * jnp.log(jnp.maximum(root, 0.01)) + power

    for _ in range(keys.ndim):
        one = jax.vmap(one)
    draws = one(keys, a)
    return draws if log_space else jnp.exp(draws)
