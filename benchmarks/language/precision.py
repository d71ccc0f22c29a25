"""Question: what do exact parts lose on devices whose products of single precision keep 10 bits of their operands (TF32)?

Emulated on any machine: the program is traced, and the operands of its products are rounded. `as it is` rounds where the device
would, at the default precision; `without` rounds the operands of all products, as the device would if the library did not ask for
full precision. Compared with double precision of the same numbers.

usage: python benchmarks/language/precision.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from lapilli import ppl

Array = jax.Array
KEPT = 10  # bits of the mantissa


def rounded(x: Array) -> Array:
    """To the nearest number with so many bits of mantissa, ties to even."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    cut = 23 - KEPT
    even = (bits >> cut) & 1
    bits = (bits + (1 << (cut - 1)) - 1 + even) & jnp.uint32(0xFFFFFFFF << cut & 0xFFFFFFFF)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def is_rounded(eqn: Any, every: bool) -> bool:
    """Whether the device rounds what an equation multiplies."""
    if eqn.primitive.name != "dot_general" or eqn.outvars[0].aval.dtype != jnp.float32:
        return False
    return every or "HIGH" not in str(eqn.params["precision"])


def rewritten(jaxpr: Any, every: bool) -> Any:
    """A program with its products' operands rounded, those of inner programs included."""
    if isinstance(jaxpr, jax.extend.core.Jaxpr):
        return jaxpr.replace(eqns=[equation(eqn, every) for eqn in jaxpr.eqns])
    if isinstance(jaxpr, jax.extend.core.ClosedJaxpr):
        return jaxpr.replace(jaxpr=rewritten(jaxpr.jaxpr, every))
    if type(jaxpr) in (tuple, list):  # of branches
        return type(jaxpr)(rewritten(x, every) for x in jaxpr)
    return jaxpr


def equation(eqn: Any, every: bool) -> Any:
    """An equation, in whose place a call stands where its operands are rounded."""
    if not is_rounded(eqn, every):
        return eqn.replace(params={n: rewritten(p, every) for n, p in eqn.params.items()})
    highest = eqn.params | {"precision": (jax.lax.Precision.HIGHEST,) * 2}
    product = jax.jit(lambda *xs: eqn.primitive.bind(*map(rounded, xs), **highest))
    (call,) = jax.make_jaxpr(product)(*(x.aval for x in eqn.invars)).jaxpr.eqns
    return eqn.replace(primitive=call.primitive, params=call.params)


def emulated(fn: Callable[..., Any], args: Sequence[Array], every: bool) -> Any:
    """What a function returns on such a device."""
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    found = jax.jit(jax.extend.core.jaxpr_as_fun(rewritten(closed, every)))(*args)
    return jax.tree.unflatten(jax.tree.structure(shape), found)


def moments(program: ppl.Program, sites: Sequence[str], *args: Array) -> dict[str, Array]:
    """Log evidence, posterior means and scales of sites that are integrated out."""
    program = ppl.eliminate(program, sites)
    laws = program.posterior_marginals({}, *args)
    flat = lambda what: jnp.concatenate([jnp.ravel(getattr(laws[n], what)) for n in sites])
    log_z = program.log_density({}, *args)
    return {"log_z": log_z, "mean": flat("loc"), "scale": flat("scale")}


@ppl.model
def regression(x: Array, y: Array) -> None:
    beta = ppl.sample("beta", dist.Normal(jnp.zeros(x.shape[1], x.dtype), 1.0).to_event(1))
    ppl.sample("y", dist.Normal(x @ beta, 0.05).to_event(1), obs=y)


@ppl.model
def effects(group: Array, x: Array, y: Array) -> None:
    mean = ppl.sample("mean", dist.Normal(jnp.zeros((), x.dtype), 10.0))
    beta = ppl.sample("beta", dist.Normal(jnp.zeros(x.shape[1], x.dtype), 10.0).to_event(1))
    with ppl.plate("groups", 12):
        effect = ppl.sample("effect", dist.Normal(mean, 1.0))
    with ppl.plate("rows", len(y)):
        ppl.sample("y", dist.Normal(effect[group] + x @ beta, 0.5), obs=y)


@ppl.model
def series(move: Array, look: Array, y: Array) -> None:
    first = ppl.sample("first", dist.Normal(jnp.zeros(len(move), y.dtype), 100.0).to_event(1))

    def step(z: Array, y: Array) -> tuple[Array, None]:
        z = ppl.sample("z", dist.Normal(move @ z, jnp.asarray(0.1, y.dtype)).to_event(1))
        ppl.sample("y", dist.Normal(look @ z, jnp.asarray(0.01, y.dtype)).to_event(1), obs=y)
        return z, None

    ppl.scan(step, first, y)


def wishart(x: Array) -> dict[str, Array]:
    """The posterior of a mean and a covariance, and the log-density of the data under what it predicts."""
    d = x.shape[1]
    prior = ppl.distributions.NormalInverseWishart(
        jnp.zeros(d, x.dtype), jnp.asarray(1.0, x.dtype), jnp.eye(d, dtype=x.dtype), jnp.asarray(d + 2.0, x.dtype)
    )  # fmt: skip
    after = prior.posterior(x)
    mean, covariance = after.mode
    deviations = jnp.sqrt(jnp.diagonal(covariance))
    return {"log_z": after.predictive().log_prob(x).sum(), "mean": mean, "scale": deviations}


def parts() -> dict[str, tuple[Callable[..., dict[str, Array]], tuple[np.ndarray, ...]]]:
    """Name -> function of arrays, and these, in single precision."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    x, group = normal(120, 3) + 5, rng.integers(0, 12, 120)
    move = (np.linalg.qr(normal(4, 4))[0] * 0.9999).astype(np.float32)
    return {
        "regression, 40 coefficients": (
            lambda *a: moments(regression, ["beta"], *a), (normal(120, 40), normal(120)),
        ),
        "random effects": (
            lambda *a: moments(effects, ["mean", "beta", "effect"], *a),
            (group, x, (x @ [1, 2, 3]).astype(np.float32) + normal(120)),
        ),
        "Kalman smoother, d = 4, T = 200": (
            lambda *a: moments(series, ["first", "z"], *a), (move, normal(2, 4), normal(200, 2)),
        ),
        "normal-inverse-Wishart, d = 16": (wishart, (normal(2000, 16) @ normal(16, 16) + 3,)),
    }  # fmt: skip


def doubled(args: Sequence[np.ndarray]) -> list[Array]:
    """The same numbers in double precision."""
    return [jnp.asarray(a, jnp.float64 if a.dtype == np.float32 else a.dtype) for a in args]


def main() -> None:
    """Print the table."""
    print(f"{'':34} {'':10} {'mean, in scales':>16} {'scale, share':>13} {'log evidence':>13}")
    for name, (fn, args) in parts().items():
        with jax.enable_x64(True):
            exact = jax.tree.map(np.asarray, fn(*doubled(args)))
        for label, every in (("as it is", False), ("without", True)):
            try:
                found = emulated(fn, [jnp.asarray(a) for a in args], every)
            except ValueError as refusal:
                print(f"{name:34} {label:10} refused: {str(refusal)[:60]}")
                continue
            found = jax.tree.map(lambda x: np.asarray(x, float), found)
            mean = np.abs((found["mean"] - exact["mean"]) / exact["scale"]).max()
            scale = np.abs(found["scale"] / exact["scale"] - 1).max()
            log_z = abs(found["log_z"] - exact["log_z"])
            print(f"{name:34} {label:10} {mean:16.2g} {scale:13.2g} {log_z:13.2g}")


if __name__ == "__main__":
    main()
