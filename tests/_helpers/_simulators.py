"""Simulators as plain functions of a module, which worker processes can import."""

import os
import time


def noisy(rng, parameters):
    """The parameter with noise of its own."""
    return parameters["m"] + rng.normal()


def fails_below_zero(rng, parameters):
    """The same, where the parameter is not negative."""
    if parameters["m"] < 0:
        raise ZeroDivisionError("below")
    return noisy(rng, parameters)


def dies(rng, parameters):
    """Takes its process with it."""
    os._exit(1)


def slow(rng, parameters):
    """Noise, after a while."""
    time.sleep(0.05)
    return noisy(rng, parameters)


def table_of_slow(folder, num_workers=1):
    """A hundred simulations in ten batches."""
    import jax
    import numpyro.distributions as dist

    from lapilli import inference, ppl

    prior = lambda: ppl.sample("m", dist.Normal(0.0, 1.0))
    return inference.simulators.reference_table(
        prior, simulator=slow, loop="python", num_simulations=100, batch_size=10,
        num_workers=num_workers, folder=folder, key=jax.random.key(0), progress=False,
    )  # fmt: skip
