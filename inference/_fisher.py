"""Square roots of the Fisher information of an observation, as a function of the observation's parameters.

Terms: y ~ p(y | eta(x)), information F(eta) = E[-d2 log p / d eta2]. Output: h with dh/dx' dh/dx = (d eta/dx)' F (d eta/dx) at
the present x, that is h = R eta(x) for a constant R with R'R = F: the Jacobian of h is the factor of the generalised Gauss-Newton
matrix of the observation. Wherever -log p is convex in eta with the same second derivative for all y (canonical parameters,
normal with known scale) this F is the Hessian in eta.

Reference: Martens 2020, New insights and perspectives on the natural gradient method, arXiv:1412.1193, section 9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

Array = jax.Array
stop = jax.lax.stop_gradient


def _normal(fn: Any) -> list[Array]:
    # The scale's information, 2 / scale^2, is that of a second output sqrt(2) log(scale) (F in eta = log scale is 2).
    return [fn.loc / stop(fn.scale), jnp.sqrt(2.0) * jnp.log(fn.scale)]


def _categorical(fn: Any) -> list[Array]:
    logits = fn.logits
    p = stop(jax.nn.softmax(logits))
    # diag(p) - p p' = R'R with R = diag(sqrt p) - sqrt(p) p'.
    return [jnp.sqrt(p) * (logits - (p * logits).sum(-1, keepdims=True))]


def _bernoulli(fn: Any) -> list[Array]:
    p = stop(jax.nn.sigmoid(fn.logits))
    return [jnp.sqrt(p * (1 - p)) * fn.logits]


def _poisson(fn: Any) -> list[Array]:
    return [fn.rate / jnp.sqrt(stop(fn.rate))]


def _multivariate_normal(fn: Any) -> list[Array]:
    tril, loc = jnp.broadcast_to(fn.scale_tril, (*fn.loc.shape, fn.loc.shape[-1])), fn.loc
    return [solve_triangular(stop(tril), loc[..., None], lower=True)[..., 0]]


def _student_t(fn: Any) -> list[Array]:
    information = (fn.df + 1) / (fn.df + 3)
    return [jnp.sqrt(stop(information)) * fn.loc / stop(fn.scale)]


ROOTS: dict[str, tuple[Callable[[Any], list[Array]], tuple[str, ...]]] = {
    # law: (roots, parameters that must not depend on x)
    "Normal": (_normal, ()),
    "MultivariateNormal": (_multivariate_normal, ("scale_tril",)),
    "StudentT": (_student_t, ("df", "scale")),
    "CategoricalLogits": (_categorical, ()),
    "CategoricalProbs": (_categorical, ()),
    "BernoulliLogits": (_bernoulli, ()),
    "BernoulliProbs": (_bernoulli, ()),
    "Poisson": (_poisson, ()),
}
