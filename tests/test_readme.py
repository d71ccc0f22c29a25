"""The README's code runs, and its estimator is unbiased."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest

from _stats import assert_unbiased
from lapilli import ppl

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"<!-- example -->\n```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore")
def test_the_thirty_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = EXAMPLES[0].replace("num_steps=1000", "num_steps=200")
    scope = {"__name__": "readme"}
    exec(code, scope)
    history = scope["fit"].history["value"]
    assert history[-20:].mean() > history[:20].mean() + 50
    assert (tmp_path / "means.png").stat().st_size > 1000


def test_the_estimator_of_the_readme_is_unbiased(key):
    scope = {}
    exec(EXAMPLES[1] + EXAMPLES[2], scope)

    def cost(logits):
        with ppl.plate("rows", 2):
            b = ppl.sample("b", dist.Bernoulli(logits=logits), strategy=scope["DisARM"]())
        return (b * jnp.array([1.0, -2.0])).sum() + b[0] * b[1] * 3.0

    p = jax.nn.sigmoid(jnp.array([0.4, -0.7]))
    exact = p * (1 - p) * jnp.array([1 + 3 * p[1], -2 + 3 * p[0]])
    grad = ppl.expectation(cost).grad
    keys = jax.random.split(key, 20_000)
    estimates = jax.vmap(lambda k: grad(jnp.array([0.4, -0.7]), k))(keys)
    assert_unbiased(estimates, exact)  # finds a bias of 0.02 (7 standard errors)
