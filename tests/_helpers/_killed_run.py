"""A run of `fit` on a loader with a state, made to be killed at any time and started again.

    python tests/_helpers/_killed_run.py CHECKPOINT NUM_STEPS SECONDS

It prints "reads" once it has read some batches and steps are on their way, waits SECONDS for each batch, and at the end writes
the history of values beside the checkpoint.
"""

import sys
import time

import jax
import numpy as np
import numpyro.distributions as dist
import optax

from lapilli import inference, ppl

SIZE = 3


class Stream:
    """Random batches without end, each of which depends on all before it; the number of the batch is in it."""

    def __init__(self, seconds=0.0, tell=lambda: None):
        self.rng, self.number, self.seconds = np.random.default_rng(0), 0, seconds
        self.tell, self.calls = tell, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.calls += 1
        if self.calls == 80:  # more than a stack
            self.tell()
        time.sleep(self.seconds)
        self.number += 1
        return (self.number + self.rng.normal(size=SIZE).astype(np.float32),)

    def get_state(self):
        return {"number": self.number, "rng": self.rng.bit_generator.state}

    def set_state(self, state):
        self.number = state["number"]
        self.rng.bit_generator.state = state["rng"]


def model(x):
    with ppl.plate("rows", SIZE):
        ppl.sample("x", dist.Normal(ppl.param("mean", 0.0), 1.0), obs=x)


def train(stream, num_steps, path=None):
    """The fit; a checkpoint at every seventh step, so that kills meet files half written."""
    return inference.fit(
        inference.elbo(model, lambda x: None), optax.adam(0.1), stream, num_steps=num_steps,
        key=jax.random.key(0), plate_sizes={}, checkpoint=path, checkpoint_every=7, progress=False,
    )  # fmt: skip


if __name__ == "__main__":
    path, num_steps, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    fit = train(Stream(seconds, lambda: print("reads", flush=True)), num_steps, path)
    np.save(f"{path}.values.npy", fit.history["value"])
