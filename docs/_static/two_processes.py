"""A fit in two processes, each with a file of its own.

On one computer, in two terminals:

    python two_processes.py 0
    python two_processes.py 1

and under SLURM, `srun --ntasks=2 python two_processes.py`: JAX finds out by itself how many there are and which one it is.
"""

import sys

import jax

if len(sys.argv) > 1:  # on one computer: where to meet, how many, which one
    jax.distributed.initialize("localhost:8765", num_processes=2, process_id=int(sys.argv[1]))
else:
    jax.distributed.initialize()

import numpy as np
import numpyro.distributions as dist
import optax

from lapilli import inference, ppl
from lapilli.inference.fitting import ProcessLocal


@ppl.model
def model(x):
    mean = ppl.sample("mean", dist.Normal(0.0, 10.0))
    with ppl.plate("rows", x.shape[0]):
        ppl.sample("x", dist.Normal(mean, 1.0), obs=x)


def guide(x):
    scale = ppl.param("scale", 1.0, constraint=dist.constraints.positive)
    ppl.sample("mean", dist.Normal(ppl.param("loc", 0.0), scale))


rank, devices = jax.process_index(), jax.device_count()
# This process's file: 600 rows around 1, or 400 around 2. The posterior's mean is close to 1.4.
size = 600 if rank == 0 else 400
x = np.random.default_rng(rank).normal(1.0 + rank, 1.0, size).astype(np.float32)

result = inference.fit(
    inference.elbo(model, guide),
    optax.adam(0.05),
    ProcessLocal((x,), plate="rows"),
    subsample={"rows": 100},
    mesh=jax.make_mesh((devices,), ("devices",)),
    num_steps=500,
    key=jax.random.key(0),  # the same in all processes
    progress=False,
)
print(
    f"process {rank}: loc {float(result.params['loc']):.2f}, after {result.steps} steps", flush=True
)
