"""Question: what does one gradient of supnotMIWAE's bound cost beside the same gradient written by hand in JAX?

Series of JapaneseVowels (25 steps, 12 channels, half of their cells hidden), self-masking missingness, Gaussian process prior,
ObsDropout, K = 5 particles and one draw of the missing cells each. Both use the same networks; by hand, sampling, densities,
weights and the mask of ObsDropout are written out, with the law of the guide through the same Cholesky factors and hidden cells
drawn from the same `hidden_law`. All run in one process, interleaved; the answer is the median of paired ratios of processor
times, with a bootstrap interval, which other work on the machine disturbs least. Before that the means of value and gradient
over draws are compared. The model of lapilli puts a barrier behind its draws of hidden cells, without which XLA makes them anew
from random bits in every loop that reads them; `--barrier` gives one to the hand-written step too.

usage: python benchmarks/models/imputation_step.py [--batch 64] [--repeats 40] [--barrier] [--record]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from lapilli import inference
from lapilli.models import imputation
from lapilli.models.imputation import GaussianHead, Series
from lapilli.models.imputation._hidden_law import hidden_law

sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "papers" / "imputation"))
import protocol
from _common import interleaved, paired, parsed, record_figure, with_intervals

PARTICLES, DROPOUT, HIDDEN, LENGTH = 5, 0.3, 32, 3.0
CHANNELS, CLASSES = 12, 9
LOG_2PI = jnp.log(2 * jnp.pi)


def networks(key: jax.Array) -> dict[str, Any]:
    """The networks of `imputation.programs`, freshly initialised."""
    keys = jax.random.split(key, 4)
    return {
        "encoder": GaussianHead("gru", 2 * CHANNELS, CHANNELS, HIDDEN, min_scale=1e-2, key=keys[0]),
        "decoder": GaussianHead(
            "conv", CHANNELS, CHANNELS, HIDDEN, min_scale=1e-2, is_causal=True, key=keys[1]
        ),
        "missingness": imputation.missingness("self_masking", CHANNELS, HIDDEN, key=keys[2]),
        "classifier": imputation.Classifier("conv", CHANNELS, CLASSES, HIDDEN, key=keys[3]),
    }


def by_hand(
    nets: dict[str, Any], key: jax.Array, data: Series, has_barrier: bool = False
) -> jax.Array:
    """The bound (nats), written out."""
    values, cells, times, valid = (
        jnp.asarray(a) for a in (data.values, data.observed, data.times, data.valid)
    )
    # The guide: the posterior of white noise after looks at the paths.
    shown = jnp.where(cells, values, 0)
    features = jnp.concatenate([shown, cells.astype(shown.dtype)], -1)
    looks, scale = jax.vmap(nets["encoder"])(features, times, valid)
    looks, scale = (looks + shown).mT, (scale * jnp.where(cells, 0.3, 15.0)).mT
    precision = jnp.where(valid[:, None], scale**-2, 0)
    kernel = imputation.cauchy_kernel(times, length_scale=LENGTH)
    mixing = imputation.own_cholesky(kernel, valid)
    b = jnp.einsum("nts,ndt,ntr->ndsr", mixing, precision, mixing) + jnp.eye(valid.shape[1])
    root = jnp.linalg.cholesky(b[..., ::-1, ::-1])[..., ::-1, ::-1].mT
    solve = lambda x, trans=0: jax.scipy.linalg.solve_triangular(
        root, x[..., None], trans=trans, lower=True
    )[..., 0]
    loc = solve(solve(jnp.einsum("nts,ndt->nds", mixing, precision * looks), 1))
    log_det = jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)).sum((-1, -2))

    def particle(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 4)
        noise = jax.random.normal(keys[0], loc.shape)
        z = loc + solve(noise)
        log_w = 0.5 * (noise**2 - z**2).sum((-1, -2)) - log_det
        path = jnp.einsum("nts,nds->ntd", mixing, z)
        x_loc, x_scale = jax.vmap(nets["decoder"])(path, times, valid)
        x_loc = x_loc + path
        log_x = -0.5 * (((values - x_loc) / x_scale) ** 2 + LOG_2PI) - jnp.log(x_scale)
        log_w += jnp.where(cells, log_x, 0).sum((-1, -2))
        slope, bias = nets["missingness"].slope, nets["missingness"].bias
        law = hidden_law(dist.Normal(x_loc, x_scale), -slope, -bias, valid[..., None] & ~cells)
        noise = jax.random.normal(keys[1], x_loc.shape)
        drawn = law.loc + law.scale * noise
        drawn = jax.lax.optimization_barrier(drawn) if has_barrier else drawn
        x = jnp.where(cells, values, drawn)
        shift = jnp.log(law.scale / x_scale) + 0.5 * (noise**2 - ((x - x_loc) / x_scale) ** 2)
        log_w += jnp.where(valid[..., None] & ~cells, shift, 0).sum((-1, -2))
        logits = slope * x + bias
        log_s = jax.nn.log_sigmoid(jnp.where(cells, logits, -logits))
        log_w += jnp.where(valid[..., None], log_s, 0).sum((-1, -2))
        kept = cells & jax.random.bernoulli(keys[2], 1 - DROPOUT, cells.shape)
        seen = jnp.where(kept, values, drawn)
        log_y = jax.nn.log_softmax(jax.vmap(nets["classifier"])(seen, kept, times, valid))
        return log_w + log_y[jnp.arange(len(log_y)), data.labels]

    log_w = jax.vmap(particle)(jax.random.split(key, PARTICLES))
    return (jax.nn.logsumexp(log_w, 0) - jnp.log(PARTICLES)).sum()


def pair(batch: int, has_barrier: bool) -> tuple[dict[str, Any], dict[str, Any], Series]:
    """Compiled (params, key, data) -> (value, gradient) and parameters of both, and data."""
    task = protocol.problem("JapaneseVowels_eq", "mnar", 0.5, 0)
    data = jax.tree.map(jnp.asarray, task.train.rows(slice(0, batch)))
    key = jax.random.key(0)
    imputer = imputation.programs(
        CHANNELS, num_classes=CLASSES, missingness="self_masking", num_latents=CHANNELS, num_hidden=HIDDEN,
        length_scale=LENGTH, classifier="conv", key=key,
    )  # fmt: skip
    model = imputation.obs_dropout(imputer.model, DROPOUT)
    bound = inference.iwelbo(model, imputer.guide, num_particles=PARTICLES, per="rows")
    arrays, static = eqx.partition(networks(key), eqx.is_inexact_array)
    hand = jax.value_and_grad(
        lambda p, key, data: by_hand(eqx.combine(p, static), key, data, has_barrier)
    )
    functions = {"by hand": jax.jit(hand), "lapilli": jax.jit(bound.value_and_grad)}
    params = {"by hand": arrays, "lapilli": bound.init(key, data)}
    for a, b in zip(*(jax.tree.leaves(dict(p)) for p in params.values()), strict=True):
        np.testing.assert_array_equal(a, b)
    # At a slope of zero, where a mechanism starts, no cell is hidden for its value.
    steep = lambda net: eqx.tree_at(lambda n: n.slope, net, jnp.full(CHANNELS, -1.0))
    params = {n: {**p, "missingness": steep(p["missingness"])} for n, p in params.items()}
    return functions, params, data


def check_agreement(functions: dict[str, Any], params: dict[str, Any], data: Series) -> None:
    """Equal means of value and gradient over draws of either's own noise."""
    keys = jax.random.split(jax.random.key(3), 200)
    found = {
        name: [jax.tree.leaves((v, dict(g))) for v, g in (fn(params[name], k, data) for k in keys)]
        for name, fn in functions.items()
    }
    for a, b in zip(*(zip(*runs, strict=True) for runs in found.values()), strict=True):
        a, b = np.stack(a).astype(float), np.stack(b).astype(float)
        error = np.sqrt((a.var(0) + b.var(0)) / len(keys)) + 1e-3
        z = np.abs(a.mean(0) - b.mean(0)) / error
        assert z.max() < 6, f"lapilli disagrees with the hand-written bound: {z.max()} errors"


def main() -> None:
    parser = argparse.ArgumentParser(description="One gradient beside hand-written JAX.")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--barrier", action="store_true", help="behind draws by hand too")
    args = parsed(parser)
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {os.cpu_count()} cores, float32")
    functions, params, data = pair(args.batch, args.barrier)
    check_agreement(functions, params, data)
    calls = {n: lambda i, n=n: functions[n](params[n], jax.random.key(i), data) for n in functions}
    hand, ours = interleaved(calls, args.repeats, clock=time.process_time).steady.values()
    ratio = paired(ours, hand)
    print(
        f"batch {len(data.values)}: by hand {1e3 * np.median(hand):.1f} ms, lapilli {1e3 * np.median(ours):.1f} ms of processor "
        f"time; median of paired ratios {ratio:.3f}"
    )
    if args.record:
        peer = "hand-written JAX" + (" with a barrier behind its draws" if args.barrier else "")
        record_figure(
            "missing_data/imputation_step" + ("_barrier" if args.barrier else ""),
            what="training step of supnotMIWAE where cells hide themselves, processor time beside hand-written JAX; spread: half "
            "of the 95% interval of the median",
            digits=2,
            measures=["examples/papers/imputation/protocol", "models/imputation", "ppl"],
            **with_intervals({peer: ratio}),
        )


if __name__ == "__main__":
    main()
