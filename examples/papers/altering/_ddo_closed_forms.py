"""What direct discriminative optimisation does in closed form: by sums over a table and integrals over the line."""

from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.stats import norm

GRID = np.linspace(-15, 15, 6001)


def loss_of(log_p: Any, log_ref: Any, data: Any, alpha: float, beta: float) -> float:
    """The loss under densities on a grid, or probabilities of outcomes."""
    d = beta * (log_p - log_ref)
    return float((data * np.logaddexp(0, -d) + alpha * np.exp(log_ref) * np.logaddexp(0, d)).sum())


def normal(theta: Any) -> Any:
    """Log of the masses of Normal(theta_0, exp(theta_1)) on the grid."""
    return norm.logpdf(GRID, theta[0], np.exp(theta[1])) + np.log(GRID[1] - GRID[0])


def curvature(alpha: float, beta: float, at: Any, data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Gradient and Hessian of the loss at the reference, by differences."""
    f = lambda t: loss_of(normal(t), normal(at), data, alpha, beta)
    h, e = 1e-3, np.eye(2)
    gradient = np.array([(f(at + h * v) - f(at - h * v)) / (2 * h) for v in e])
    mixed = lambda u, v: f(at + h * (u + v)) - f(at + h * (u - v)) - f(at - h * (u - v)) + f(at - h * (u + v))  # fmt: skip
    return gradient, np.array([[mixed(u, v) / (4 * h * h) for u in e] for v in e])


def threshold(beta: float, at: Any, data: Any) -> float:
    """The alpha at which the reference stops to be a minimum, by bisection."""
    low, high = 0.1, 40.0
    for _ in range(40):
        middle = (low + high) / 2
        is_minimum = np.linalg.eigvalsh(curvature(middle, beta, at, data)[1])[0] > 0
        low, high = (middle, high) if is_minimum else (low, middle)
    return low


def closed_forms() -> dict[str, float]:
    """What must hold, by sums over a table and over the line."""
    rng = np.random.default_rng(0)
    data, ref = rng.dirichlet(np.ones(8)), np.log(rng.dirichlet(np.ones(8)))
    log_p = lambda t: t - np.logaddexp.reduce(t)
    table = log_p(minimize(lambda t: loss_of(log_p(t), ref, data, 1, 1), ref, tol=1e-12).x)
    truth, wrong = np.array([0.7, np.log(1.2)]), np.zeros(2)
    p = np.exp(normal(truth))
    line = minimize(lambda t: loss_of(normal(t), normal(wrong), p, 1, 1), wrong, tol=1e-12).x
    modes = 0.5 * np.exp(normal([-2.0, -0.7])) + 0.5 * np.exp(normal([2.0, -0.7]))
    mle = np.array([0.0, 0.5 * np.log((modes * GRID**2).sum())])
    return {
        "KL to the data, table": float((data * (np.log(data) - table)).sum()),
        "KL to the data, line": float((p * (normal(truth) - normal(line))).sum()),
        "gradient at two modes' MLE": float(max(abs(curvature(a, b, mle, modes)[0]).max() for a, b in [(1, 1), (4, 0.1)])),
        "alpha where it turns, beta 1 (3)": threshold(1.0, truth, p),
        "alpha where it turns, beta 0.5 (1.667)": threshold(0.5, truth, p),
    }  # fmt: skip
