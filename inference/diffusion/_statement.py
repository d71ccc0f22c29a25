"""A corrected diffusion as a statement of a program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, PyTree

from ... import ppl
from ...ppl._compat import handler_stack
from . import _points as points
from ._corrector import Diffused
from ._fkc import CorrectedDiffusion


def diffuse(name: str, diffusion: CorrectedDiffusion) -> Array:
    """Draw a point of a corrected diffusion within a program: sites for its path, factors for the weights of its steps.

    The program's density gains that of the path x_0, ..., x_N and the weights,

        p(x_0) G_0 prod_n M_n(x_n | x_{n-1}) G_n,

    under which x_N has the density exp(h) prod_i q_i^w_i, not normalised. The model may depend on other sites of the program,
    e.g. on a class; `smc` resamples them with the point between the steps, `particle_gibbs` moves whole paths.

    Args:
        name: of the site of the steps x_1, ..., x_N, [steps, *shape]; the first point is the site `<name>_start`. Points that are
            trees have one site for each array, `<name>.<path of the array>`.
        diffusion: what `fkc` returns, with zeta > 0.

    Returns:
        The point x_N.

    Raises:
        TypeError: not the result of `fkc`.
        ValueError: Langevin moves, or zeta = 0, which have no density; plates around it.

    Validity: that of the weights, see `fkc`; with "exact" ones the program's evidence is unbiased for every grid.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> from lapilli import inference, ppl
        >>> from lapilli.models import diffusion
        >>> noising = diffusion.VP()
        >>> q = diffusion.gaussian_mixture(noising, [0.5, 0.5], [-1.0, 1.0], 0.1)
        >>> @ppl.model
        ... def observed(y):
        ...     x = inference.diffusion.diffuse("x", inference.diffusion.fkc(q, noising.times(20)))
        ...     ppl.sample("y", dist.Normal(x, 0.5), obs=y)
        >>> sorted(observed.simulate(jax.random.key(0), 0.8).choices)
        ['x', 'x_start']
    """
    if not isinstance(diffusion, CorrectedDiffusion):
        raise TypeError(
            f"diffuse('{name}'): needs the result of inference.diffusion.fkc, got {type(diffusion).__name__}."
        )
    if plates := [h.name for h in handler_stack() if isinstance(h, numpyro.plate)]:
        raise ValueError(
            f"diffuse('{name}'): it stands in the plates {plates}, and draws one point, not one for each row. Take it out of "
            "them: a statement for each row, with a name of its own, or all rows as one point of more coordinates."
        )
    corrector = diffusion.corrector
    has_noise = bool(np.all(np.asarray(diffusion.zeta) > 0))
    if corrector.langevin is not None or not has_noise:
        what = "zeta = 0 at a step" if corrector.langevin is None else "Langevin moves"
        raise ValueError(
            f"diffuse('{name}'): the model has {what}, so its steps have no density. Use a positive zeta and no langevin=, "
            "or run the model itself in smc."
        )
    first = _sample(name, corrector.law, "_start")
    start = corrector.at(first, jnp.zeros((), jnp.int32), None)
    ppl.factor(f"{name}_start_weight", corrector.log_start(start))

    def step(previous: Diffused, n: Array) -> tuple[Diffused, None]:
        x = _sample(name, corrector.step_law(previous, n))
        state = corrector.at(x, n, previous)
        ppl.factor(f"{name}_weight", corrector.log_weight(previous, state, n - 1))
        return state, None

    last, _ = ppl.scan(step, start, jnp.arange(1, diffusion.num_steps + 1, dtype=jnp.int32))
    return last.x


def _sample(name: str, law: dist.Distribution, suffix: str = "") -> PyTree:
    """One site for each array of the point."""
    laws, tree = jax.tree_util.tree_flatten_with_path(law, is_leaf=points.is_law)
    at = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    names = [f"{name}.{at(path)}" if path else name for path, _ in laws]
    return tree.unflatten(
        [ppl.sample(n + suffix, d) for n, (_, d) in zip(names, laws, strict=True)]
    )
