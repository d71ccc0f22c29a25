"""What a first fit costs before its steps: programs that are compiled in a fresh process."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, numpy as np, numpyro.distributions as dist
from lapilli import inference, ppl
found = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: found.append(event) if event.endswith("backend_compile_duration") else None
)

def model(y):
    loc, scale = ppl.sample("loc", dist.Normal(0, 10)), ppl.sample("scale", dist.HalfNormal(5))
    with ppl.plate("rows", len(y)):
        ppl.sample("y", dist.Normal(loc, scale), obs=y)

inference.fit(model, args=(np.random.default_rng(0).normal(3, 2, 100).astype(np.float32),), progress=False)
print(len(found))
"""


@pytest.mark.slow  # a process of its own
def test_a_first_fit_compiles_few_programs():
    """Draws, values, derivatives, parameters, state, steps, judged values, and what is needed to hand numbers over.

    Fifty were compiled when keys, states and tests for the end were computed operation by operation.
    """
    env = {name: x for name, x in os.environ.items() if not name.startswith("JAX_COMPILATION")}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=env
    )
    assert int(run.stdout.split()[-1]) <= 17
