"""Square roots of the Fisher information of an observation, as a function of the observation's parameters.

Terms: y ~ p(y | eta(x)), information F(eta) = E[-d2 log p / d eta2]. Output: h(x; z) = R(z) eta(x) with R'R = F(eta(z)), so that
the Jacobian of h in x, at z = x, is a factor of (d eta/dx)' F (d eta/dx), the generalised Gauss-Newton matrix of the observation;
and r(z; y) with R'r = -d log p(y | eta) / d eta, so that (dh/dx)'r is the gradient of the observation's loss.
Nothing is held constant by hand: derivatives of the factor itself are whole.
Wherever -log p is convex in eta with the same second derivative for all y (canonical parameters,
normal with known scale) this F is the Hessian in eta.

Reference: Martens 2020, New insights and perspectives on the natural gradient method, arXiv:1412.1193, section 9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import PyTree

Array = jax.Array
TINY = 1e-30  # the least probability: its root can be divided by in single precision


class FisherOutputs(NamedTuple):
    """h and r, of equal shapes."""

    values: Array
    slopes: Array


def _normal(fn: Any, at: PyTree, y: Array) -> list[FisherOutputs]:
    # The scale's information, 2 / scale^2, is that of a second output sqrt(2) log(scale) (F in eta = log scale is 2).
    error = (at.loc - y) / at.scale
    log_scale = jnp.sqrt(2.0) * jnp.log(fn.scale)
    return [
        FisherOutputs(fn.loc / at.scale, error),
        FisherOutputs(log_scale, (1 - error**2) / jnp.sqrt(2.0)),
    ]


def _categorical(fn: Any, at: PyTree, y: Array) -> list[FisherOutputs]:
    """One output less than there are classes.

    With s = sqrt(p), F = diag(s) (1 - s s') diag(s). A reflection that takes s to an axis turns the projection into one that
    drops this axis, the most probable class (the last one here), where 1 / s is small.
    """
    is_label = jax.nn.one_hot(y, at.logits.shape[-1])
    logits, at_logits, is_label = jnp.broadcast_arrays(fn.logits, at.logits, is_label)
    order = jnp.argsort(at_logits, -1)
    logits, at_logits, is_label = (
        jnp.take_along_axis(x, order, -1) for x in (logits, at_logits, is_label)
    )
    p = jnp.maximum(jax.nn.softmax(at_logits), TINY)
    s = jnp.sqrt(p)
    residual = (p - is_label) / s
    last = 1 + s[..., -1:]
    mean = (p * logits).sum(-1, keepdims=True)
    output = s * (logits - (mean + s[..., -1:] * logits[..., -1:]) / last)
    return [FisherOutputs(output[..., :-1], (residual - s * residual[..., -1:] / last)[..., :-1])]


def _bernoulli(fn: Callable[..., PyTree], at: PyTree, y: Array) -> list[FisherOutputs]:
    p = jax.nn.sigmoid(at.logits)
    root = jnp.sqrt(jnp.maximum(p * (1 - p), TINY))
    return [FisherOutputs(root * fn.logits, (p - y) / root)]


def _poisson(fn: Callable[..., PyTree], at: PyTree, y: Array) -> list[FisherOutputs]:
    root = jnp.sqrt(at.rate)
    return [FisherOutputs(fn.rate / root, root - y / root)]


def _multivariate_normal(fn: Any, at: PyTree, y: Array) -> list[FisherOutputs]:
    shape = jnp.broadcast_shapes(fn.loc.shape, jnp.shape(y))
    tril = jnp.broadcast_to(at.scale_tril, (*shape, shape[-1]))
    solve = lambda x: solve_triangular(tril, jnp.broadcast_to(x, shape)[..., None], lower=True)[
        ..., 0
    ]
    return [FisherOutputs(solve(fn.loc), solve(at.loc - y))]


def _student_t(fn: Any, at: PyTree, y: Array) -> list[FisherOutputs]:
    root = jnp.sqrt((at.df + 1) / (at.df + 3))
    error = (at.loc - y) / at.scale
    return [
        FisherOutputs(root * fn.loc / at.scale, (at.df + 1) * error / (at.df + error**2) / root)
    ]


class Root(NamedTuple):
    """What is known of a law.

    Attributes:
        outputs: h and r from the laws at x and at z and the value.
        num_axes: of the outputs of one element, last.
        fixed: parameters that must not depend on x.
    """

    outputs: Callable[[PyTree, PyTree, Array], list[FisherOutputs]]
    num_axes: int = 0
    fixed: tuple[str, ...] = ()


ROOTS = {
    "Normal": Root(_normal),
    "MultivariateNormal": Root(_multivariate_normal, 1, ("scale_tril",)),
    "StudentT": Root(_student_t, fixed=("df", "scale")),
    "CategoricalLogits": Root(_categorical, 1),
    "CategoricalProbs": Root(_categorical, 1),
    "BernoulliLogits": Root(_bernoulli),
    "BernoulliProbs": Root(_bernoulli),
    "Poisson": Root(_poisson),
}
