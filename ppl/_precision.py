"""Matrix products of the library's own linear algebra, in the full precision of their operands.

By default JAX rounds the operands of a single-precision product to 10 bits (TF32) on GPUs since Ampere, and to 8 (bfloat16) on
TPUs. A network does not mind; a covariance, a residual or a posterior mean loses all that it had. Every product that is the
library's own, and not a network's or a user's, is therefore made under `full_precision`; `tests/test_precision.py` finds those
that are not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, overload

import jax
import numpyro
import numpyro.distributions as dist
from jaxtyping import PyTree
from numpyro.distributions import kl

from .._workarounds import Workaround
from ._compat import Equation

HIGHEST = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)


@overload
def full_precision() -> AbstractContextManager[None]: ...
@overload
def full_precision[F: Callable[..., Any]](fn: F) -> F: ...
def full_precision(fn: Callable[..., PyTree] | None = None) -> Any:
    """A block, or as a decorator a function, whose matrix products keep the full precision of their operands.

    So do the derivatives of these products. Not for code that calls a function of the user's: its products are the user's choice.
    A function may also add arrays of different ranks, whatever `jax_numpy_rank_promotion` asks of the user's own code.
    """
    if fn is None:
        return jax.default_matmul_precision("highest")

    # JAX's own decorator would keep one context for all calls, which must not be entered twice.
    @functools.wraps(fn)
    def run(*args: PyTree, **kwargs: PyTree) -> PyTree:
        with jax.default_matmul_precision("highest"), jax.numpy_rank_promotion("allow"):
            return fn(*args, **kwargs)

    return run


def at_full_precision(eqn: Equation) -> Equation:
    """The equation of a program, its product in full precision where none was chosen; other equations as they are."""
    if eqn.primitive.name not in ("dot_general", "conv_general_dilated"):
        return eqn
    given = eqn.params["precision"]
    if given not in (None, (jax.lax.Precision.DEFAULT, jax.lax.Precision.DEFAULT)):
        return eqn
    return eqn.replace(params=eqn.params | {"precision": HIGHEST})


# What multiplies matrices in NumPyro's laws: module, then functions, methods and properties.
THEIRS: dict[str, str] = {
    "continuous": "CAR.log_prob GaussianStateSpace.mean GaussianStateSpace.variance GaussianStateSpace.covariance_matrix "
    "InverseWishartCholesky.sample InverseWishartCholesky.scale_matrix LowRankMultivariateNormal.covariance_matrix "
    "LowRankMultivariateNormal.precision_matrix LowRankMultivariateNormal.scale_tril MatrixNormal.sample "
    "MultivariateNormal.covariance_matrix MultivariateNormal.sample MultivariateStudentT.covariance_matrix "
    "MultivariateStudentT.sample WishartCholesky.sample WishartCholesky.scale_matrix WishartCholesky.variance "
    "_batch_capacitance_tril _batch_mv",
    "directional": "_projected_normal_log_prob_2 _projected_normal_log_prob_3",
    "transforms": "CholeskyTransform._inverse LowerCholeskyAffine.__call__ RecursiveLinearTransform.__call__ "
    "RecursiveLinearTransform._inverse",
    "util": "logmatmulexp",
}


def _multiply_in_full() -> None:
    for module, names in THEIRS.items():
        for name in names.split():
            *owners, attribute = name.split(".")
            owner = getattr(dist, module)
            for part in owners:
                owner = getattr(owner, part)
            theirs = vars(owner)[attribute]
            if isinstance(theirs, property):
                ours: Any = property(full_precision(theirs.fget))  # pyright: ignore[reportArgumentType]
            elif hasattr(theirs, "wrapped"):  # NumPyro's lazy property
                ours = type(theirs)(full_precision(theirs.wrapped))
            else:
                ours = full_precision(theirs)
            setattr(owner, attribute, ours)
    table = kl.kl_divergence.funcs
    for kinds, theirs in list(table.items()):
        kl.kl_divergence.add(kinds, full_precision(theirs))


_multiply_in_full()


def record() -> Workaround:
    """What `workarounds()` says of products in NumPyro's laws."""
    num = sum(len(names.split()) for names in THEIRS.values())
    return Workaround(
        "numpyro-products",
        f"numpyro {numpyro.__version__}",
        "Laws with matrices multiply at JAX's default precision: on GPUs and TPUs three or two digits.",
        True,
        f"{num} functions, and all divergences, multiply in full; nothing changes on a CPU.",
    )
