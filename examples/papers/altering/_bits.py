"""Twelve bits: the trained model, a policy over them, a reward, and two objectives that need no reward: DPO and DDO."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from lapilli import inference, ppl

LENGTH = 12


def chain(logits: Any) -> Any:
    """Bits, each by the logit of its place and the bit before."""

    def step(before: Any, row: Any) -> Any:
        x = ppl.sample("x", dist.Bernoulli(logits=row[before]))
        return x, x

    return ppl.scan(step, 0, logits)[1]


def logits() -> Any:
    return ppl.param("logits", jnp.zeros((LENGTH, 2)))


bits = ppl.model(lambda: chain(jnp.zeros((LENGTH, 2))))  # the trained model
policy = ppl.model(lambda: chain(logits()))  # what is trained: the model at first


def pairs(x: Any) -> Any:
    """The reward."""
    return (x[1:] * x[:-1]).sum()


def log_ratios(table: Any, x: Any) -> Any:
    """D = log q - log p of rows of strings, the policy's density written out."""
    before = jnp.pad(x[:, :-1], ((0, 0), (1, 0)))
    law = dist.Bernoulli(logits=table[jnp.arange(LENGTH), before])
    return law.log_prob(x).sum(-1) + LENGTH * jnp.log(2.0)


@inference.objective(direction="min", weighing="refused")
def dpo(model: ppl.Program, guide: ppl.Program, temperature: Any, won: Any, lost: Any) -> Any:
    table = guide()
    return jax.nn.softplus(-temperature * (log_ratios(table, won) - log_ratios(table, lost))).mean()


@inference.objective(direction="min", weighing="refused")
def ddo(model: ppl.Program, guide: ppl.Program, data: Any, drawn: Any) -> Any:
    table = guide()
    fake, real = log_ratios(table, drawn), log_ratios(table, data)
    return jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()
