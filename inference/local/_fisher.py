"""Square roots of the Fisher information of an observation, as a function of the observation's parameters.

Terms: y ~ p(y | eta(x)), information F(eta) = E[-d2 log p / d eta2]. Output: h(x; z) = R(z) eta(x) with R'R = F(eta(z)), so that
the Jacobian of h in x, at z = x, is a factor of (d eta/dx)' F (d eta/dx), the generalised Gauss-Newton matrix of the observation.
Nothing is held constant by hand: derivatives of the factor itself are whole.
Wherever -log p is convex in eta with the same second derivative for all y (canonical parameters,
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


def _normal(fn: Any, at: Any) -> list[Array]:
    # The scale's information, 2 / scale^2, is that of a second output sqrt(2) log(scale) (F in eta = log scale is 2).
    return [fn.loc / at.scale, jnp.sqrt(2.0) * jnp.log(fn.scale)]


def _categorical(fn: Any, at: Any) -> list[Array]:
    p = jax.nn.softmax(at.logits)
    # diag(p) - p p' = R'R with R = diag(sqrt p) - sqrt(p) p'.
    return [jnp.sqrt(p) * (fn.logits - (p * fn.logits).sum(-1, keepdims=True))]


def _bernoulli(fn: Any, at: Any) -> list[Array]:
    p = jax.nn.sigmoid(at.logits)
    return [jnp.sqrt(p * (1 - p)) * fn.logits]


def _poisson(fn: Any, at: Any) -> list[Array]:
    return [fn.rate / jnp.sqrt(at.rate)]


def _multivariate_normal(fn: Any, at: Any) -> list[Array]:
    tril = jnp.broadcast_to(at.scale_tril, (*fn.loc.shape, fn.loc.shape[-1]))
    return [solve_triangular(tril, fn.loc[..., None], lower=True)[..., 0]]


def _student_t(fn: Any, at: Any) -> list[Array]:
    return [jnp.sqrt((at.df + 1) / (at.df + 3)) * fn.loc / at.scale]


ROOTS: dict[str, tuple[Callable[[Any, Any], list[Array]], tuple[str, ...]]] = {
    # law: (h of the laws at x and at z, parameters that must not depend on x)
    "Normal": (_normal, ()),
    "MultivariateNormal": (_multivariate_normal, ("scale_tril",)),
    "StudentT": (_student_t, ("df", "scale")),
    "CategoricalLogits": (_categorical, ()),
    "CategoricalProbs": (_categorical, ()),
    "BernoulliLogits": (_bernoulli, ()),
    "BernoulliProbs": (_bernoulli, ()),
    "Poisson": (_poisson, ()),
}
