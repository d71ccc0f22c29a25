"""What a first fit costs before its steps: programs that are compiled in a fresh process."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, numpyro.distributions as dist
from lapilli import inference, ppl
from _compilations import compilations

def model(y):
    loc, scale = ppl.sample("loc", dist.Normal(0, 10)), ppl.sample("scale", dist.HalfNormal(5))
    with ppl.plate("rows", len(y)):
        ppl.sample("y", dist.Normal(loc, scale), obs=y)

with compilations() as count:
    inference.fit(model, args=(np.random.default_rng(0).normal(3, 2, 100).astype(np.float32),), progress=False)
print(count())
"""


@pytest.mark.slow  # a process of its own
def test_a_first_fit_compiles_few_programs(request):
    """Draws, values, derivatives, parameters, state, steps, judged values, and what is needed to hand numbers over.

    Fifty were compiled when keys, states and tests for the end were computed operation by operation.
    """
    env = {name: x for name, x in os.environ.items() if not name.startswith("JAX_COMPILATION")}
    helpers = str(request.config.rootpath / "tests" / "_helpers")
    command = [sys.executable, "-c", PROGRAM, helpers]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert int(run.stdout.split()[-1]) <= 17
