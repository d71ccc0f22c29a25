"""Collectives, their bytes, and memory on each of eight forced host devices, of steps of fit and smc; a script, as `_on_mesh.py`.

It prints one line of JSON for each program.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from _collectives import collectives, has_host_transfers, sizes
from _on_mesh import Y
from _sharded_fit import fit_and_step

from lapilli import inference, ppl

ROWS, DIM, BATCH = 16_384, 16, 512


@ppl.model
def model(x, y):
    beta = ppl.sample("beta", dist.Normal(0.0, 1.0).expand([DIM]).to_event(1))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("y", dist.Normal((x * beta).sum(1), 1.0), obs=y)


def guide(x, y):
    ppl.sample("beta", dist.Normal(ppl.param("loc", jnp.zeros(DIM)), 0.1).to_event(1))


def wide(ys):
    """Particles whose states are vectors of 16 numbers."""

    def step(x, y):
        x = ppl.sample("x", dist.Normal(0.9 * x, 1.0).to_event(1))
        ppl.sample("y", dist.Normal(x.sum(), 1.0), obs=y)
        return x, None

    ppl.scan(step, jnp.zeros(16), ys)


def compiled_fit(mesh, rows=ROWS, **options):
    x = np.random.default_rng(0).normal(size=(rows, DIM)).astype(np.float32)
    bound, data = inference.elbo(model, guide), (x, x.sum(1))
    return fit_and_step(bound, optax.sgd(1e-4), data, num_steps=2, mesh=mesh, **options)[1]


def compiled_smc(mesh, size, **options):
    run = lambda key: inference.smc(wide, key, Y, num_particles=size, mesh=mesh, **options)
    return jax.jit(run).lower(jax.random.key(0)).compile()


def told(name, compiled):
    text, memory = compiled.as_text(), compiled.memory_analysis()
    counts = collectives(text)
    row = {
        "name": name,
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "operations": compiled.cost_analysis()["flops"],
        "collectives": dict(counts),
        "bytes": {kind: sizes(text, kind) for kind in counts},
        "host": has_host_transfers(text),
    }
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    for num in map(int, sys.argv[1:] or ["1", "8"]):
        mesh = None if num == 1 else jax.sharding.Mesh(jax.devices()[:num], ("devices",))
        told(f"fit on {num}", compiled_fit(mesh))
        told(f"minibatches on {num}", compiled_fit(mesh, subsample={"rows": BATCH}))
        told(f"odd rows on {num}", compiled_fit(mesh, ROWS + 3, subsample={"rows": BATCH}))
        told(f"smc on {num}", compiled_smc(mesh, ROWS, history="none"))
        told(f"smc with paths on {num}", compiled_smc(mesh, ROWS, history="full"))
    # What a device of eight has, alone: weak scaling.
    told("share of fit", compiled_fit(None, ROWS // 8))
    told("share of smc", compiled_smc(None, ROWS // 8, history="none"))
