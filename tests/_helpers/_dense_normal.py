"""An oracle for normal sites that are integrated out: the whole program's log-density is a quadratic form in them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lapilli import ppl


class Dense(NamedTuple):
    log_density: float
    mean: Any  # site -> array
    covariance: np.ndarray


def dense(program: Any, sites: list[str], choices: dict, args: tuple = ()) -> Dense:
    """The integral of exp f, f quadratic, and the posterior: f(mean) + (n log 2 pi - log det(-f'')) / 2, mean and -1 / f''."""
    program = ppl.as_program(program)
    shapes = jax.eval_shape(lambda: program.simulate(jax.random.key(0), *args).choices)
    zeros = {name: jnp.zeros(shapes[name].shape) for name in sites}
    flat, rebuilt = ravel_pytree(zeros)
    f = lambda z: program.log_density({**choices, **rebuilt(z)}, *args)
    start, slope, hessian = jax.jit(lambda z: (f(z), jax.grad(f)(z), jax.hessian(f)(z)))(flat)
    mean = np.linalg.solve(-hessian, slope)
    _, log_det = np.linalg.slogdet(-hessian)
    value = start + 0.5 * (slope @ mean + flat.size * np.log(2 * np.pi) - log_det)
    return Dense(float(value), rebuilt(mean), np.linalg.inv(-hessian))


def check_integral(
    program: Any,
    sites: list[str],
    choices: dict | None = None,
    args: tuple = (),
    rtol: float = 1e-9,
) -> Any:
    """Density, moments and mode of the program without the sites against the oracle, in double precision."""
    with jax.enable_x64(True):
        choices = {k: jnp.asarray(x, float) for k, x in (choices or {}).items()}
        args = jax.tree.map(
            lambda x: jnp.asarray(x, float) if np.asarray(x).dtype.kind == "f" else jnp.asarray(x),
            args,
        )
        exact = dense(program, sites, choices, args)
        eliminated = ppl.eliminate(program, sites)

        @jax.jit
        def run(choices, *args):
            value = eliminated.log_density(choices, *args)
            return value, eliminated.posterior_marginals(choices, *args)

        value, found = run(choices, *args)
        np.testing.assert_allclose(value, exact.log_density, rtol=rtol, atol=rtol)
        scales = np.sqrt(np.diag(exact.covariance))
        mean, _ = ravel_pytree({name: found[name].loc for name in sites})
        scale, _ = ravel_pytree({name: found[name].scale for name in sites})
        np.testing.assert_allclose(mean, ravel_pytree(exact.mean)[0], rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(scale, scales, rtol=1e-6)
        return eliminated
