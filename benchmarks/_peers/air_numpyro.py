"""Attend, infer, repeat as a NumPyro model, run as it stands by NumPyro's objectives and by lapilli's; see systems.py."""

from __future__ import annotations

import sys
from typing import Any

from lapilli import inference, ppl  # isort: skip  (before JAX starts)

import air_nets
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer import RenyiELBO, TraceEnum_ELBO, TraceGraph_ELBO
from worker import Gradient, Make, serve

BACKEND = air_nets.Backend(jnp, jax.nn.sigmoid, jax.nn.softplus, jax.nn.relu)
ENUM = {"enumerate": "parallel"}  # for TraceEnum_ELBO


def networks(names: Any, initial: Any) -> air_nets.Nets:
    return air_nets.Nets(BACKEND, {name: numpyro.param(name, initial[name]) for name in names})


def one_more(t: int, so_far: Any, probs: Any, infer: dict | None = None) -> Any:
    """Whether there is an object t."""
    with handlers.mask(mask=so_far):
        more = numpyro.sample(f"more_{t}", dist.Bernoulli(probs), infer=infer)
    return so_far & (more == 1)


def normal(name: str, loc: Any, scale: Any, present: Any) -> Any:
    """An object's vector, without density where there is none."""
    with handlers.mask(mask=present):
        return numpyro.sample(name, dist.Normal(loc, scale).to_event(1))


def programs(initial: Any) -> tuple[Any, Any]:
    """The model and its guide."""

    def model(x: Any) -> None:
        nets = networks(air_nets.DECODER, initial)
        with numpyro.plate("images", x.shape[0]):
            present, canvas = jnp.ones(x.shape[0], bool), jnp.zeros_like(x)
            for t in range(1, air_nets.STEPS + 1):
                present = one_more(t, present, air_nets.MORE_PROB)
                where = normal(f"where_{t}", jnp.zeros(3), jnp.ones(3), present)
                what = normal(
                    f"what_{t}", jnp.zeros(air_nets.WHAT), jnp.ones(air_nets.WHAT), present
                )
                canvas = canvas + present[..., None] * nets.write(nets.patch(what), where)
            numpyro.sample("x", dist.Normal(canvas, air_nets.NOISE).to_event(1), obs=x)

    def guide(x: Any) -> None:
        nets = networks([n for n in air_nets.SHAPES if n not in air_nets.DECODER], initial)
        size = x.shape[0]
        with numpyro.plate("images", size):
            present, embedded = jnp.ones(size, bool), nets.embed(x)
            state = jnp.zeros((size, air_nets.HIDDEN))
            where, what = jnp.zeros((size, 3)), jnp.zeros((size, air_nets.WHAT))
            for t in range(1, air_nets.STEPS + 1):
                state = nets.next_state(state, embedded, where, what)
                present = one_more(t, present, nets.more(state, present), dict(ENUM))
                where = normal(f"where_{t}", *nets.where(state), present)
                what = normal(f"what_{t}", *nets.what(x, where), present)

    return model, guide


def compiled(value_and_grad: Any, params: Any) -> Gradient:
    run = jax.jit(value_and_grad)
    return Gradient(
        lambda seed: jax.block_until_ready(run(params, jax.random.key(seed))),
        lambda out: (float(out[0]), float(out[1]["count"]["bias"][0])),
    )


def lapilli(make: Any) -> Make:
    def build(params: Any, x: Any) -> Gradient:
        objective = make(*programs(params))
        arrays = jax.tree.map(jnp.asarray, params)
        return compiled(lambda p, key: objective.value_and_grad(p, key, x), ppl.Params(arrays))

    return build


def numpyros(loss: Any) -> Make:
    def build(params: Any, x: Any) -> Gradient:
        model, guide = programs(params)
        bound = lambda p, key: -loss.loss(key, p, model, guide, x)
        return compiled(jax.value_and_grad(bound), jax.tree.map(jnp.asarray, params))

    return build


def elbo(strategy: str) -> Make:
    return lapilli(lambda *pq: inference.elbo(*pq, strategies={"more_*": strategy}))


def iwelbo(strategy: str) -> Make:
    options = {"num_particles": 2, "per": "images", "strategies": {"more_*": strategy}}
    return lapilli(lambda *pq: inference.iwelbo(*pq, **options))


COLUMNS = {
    "lapilli": {
        "ELBO, REINFORCE": elbo("reinforce"),
        "ELBO, ENUM": elbo("enum"),
        "ELBO, MVD": elbo("mvd"),
        "IWELBO 2, REINFORCE": iwelbo("reinforce"),
        "IWELBO 2, MVD": iwelbo("mvd"),
    },
    "numpyro": {
        "ELBO, REINFORCE": numpyros(TraceGraph_ELBO()),
        "ELBO, ENUM": numpyros(TraceEnum_ELBO(max_plate_nesting=1)),
        "IWELBO 2, REINFORCE": numpyros(RenyiELBO(alpha=0, num_particles=2)),
    },
}

if __name__ == "__main__":
    system = sys.argv[2]
    serve(COLUMNS[system], f"jax {jax.__version__}, numpyro {numpyro.__version__}")
