"""A VAE whose prior on the code is a diffusion model, trained with it by one bound.

What it shows: `diffusion.reverse_chain` is a statement, so that "code ~ diffusion, image ~ decoder" is a program; with
`diffusion.noising_chain` in the guide `inference.elbo` trains encoder, decoder and denoiser together. Beside it the same VAE with the
prior Normal(0, I), and that VAE with a diffusion model learned on its codes afterwards (encoder and decoder frozen). All three are
judged by the same lower bound of log p(image), on images that no training saw.

Data: scikit-learn's digits, 1,797 images of 8 x 8 pixels, scaled to variance 1 over all pixels, 300 held out. Source: Vahdat et al.
2021, arXiv:2106.05931, section 3 (joint training of code and score model); its figures are for CIFAR-10.

Expected: see the end of this docstring in README's terms.

    python examples/diffusion/latent_prior.py [--smoke] [--seed 0] [--out latent_prior_output]
"""

from pathlib import Path
from typing import Any, NamedTuple

import _digit_models as digit_models
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from _digit_models import SIZE

from lapilli import inference, ppl
from lapilli.models import diffusion

NOISING = diffusion.VP(first=5e-3)


class Config(NamedTuple):
    num_steps: int = 4_000
    num_seeds: int = 3
    num_codes: int = 8
    width: int = 128
    train_chain: int = 16
    test_chain: int = 100
    num_test: int = 300
    num_draws: int = 20


class Networks(NamedTuple):
    encoder: eqx.nn.MLP
    decoder: eqx.nn.MLP
    denoiser: diffusion.MLP

    @classmethod
    def make(cls, config: Config, key: jax.Array) -> "Networks":
        keys, d = jax.random.split(key, 3), config.num_codes
        mlp = lambda a, b, key: eqx.nn.MLP(a, b, config.width, 2, jax.nn.silu, key=key)
        return cls(
            mlp(SIZE, 2 * d, keys[0]), mlp(d, SIZE, keys[1]),
            diffusion.MLP((d,), width=64, depth=2, key=keys[2]),
        )  # fmt: skip


def programs(config: Config, nets: Networks, *, is_diffusion: bool, num_chain: int) -> Any:
    """Model and guide."""
    times = NOISING.log_snr_times(num_chain)
    normal = dist.Normal(jnp.zeros(config.num_codes), 1.0).to_event(1)

    @ppl.model
    def model(x: Any) -> None:
        decode = ppl.module("decoder", nets.decoder)
        scale = ppl.param("scale", 0.5, constraint=dist.constraints.positive)
        if is_diffusion:
            denoiser = ppl.module("denoiser", nets.denoiser)
            prior = diffusion.from_network(denoiser, NOISING, (config.num_codes,))
            spread = ppl.param(
                "spread", jnp.ones(config.num_codes), constraint=dist.constraints.positive
            )
        with ppl.plate("rows", x.shape[0]):
            if is_diffusion:
                z = diffusion.reverse_chain("z", prior, times, data_variance=spread)
            else:
                z = ppl.sample("z", normal)
            ppl.sample("x", dist.Normal(jax.vmap(decode)(z), scale).to_event(1), obs=x)

    @ppl.model
    def guide(x: Any) -> None:
        encode = ppl.module("encoder", nets.encoder)
        with ppl.plate("rows", x.shape[0]):
            mean, log_scale = jnp.split(jax.vmap(encode)(x), 2, axis=-1)
            z = ppl.sample("z", dist.Normal(mean, jnp.exp(log_scale - 1)).to_event(1))
            if is_diffusion:
                diffusion.noising_chain("z", z, NOISING, times)

    return model, guide


def fitted(
    config: Config, nets: Networks, x: Any, key: Any, *, is_diffusion: bool, start: Any = None
) -> Any:
    """Parameters; with those of `start`, only the denoiser's move."""
    objective = inference.elbo(
        *programs(config, nets, is_diffusion=is_diffusion, num_chain=config.train_chain)
    )
    adam = optax.adam(optax.cosine_decay_schedule(2e-3, config.num_steps))
    optimizer: Any = adam if start is None else {"denoiser": adam, "spread": adam, "*": "frozen"}
    fit = inference.fit(
        objective, optimizer, (x,), num_steps=config.num_steps, key=key, subsample={"rows": 128},
        average=0.999, params=start, progress=False,
    )  # fmt: skip
    return fit.params


def held_out(
    config: Config, nets: Networks, params: Any, x: Any, key: Any, *, is_diffusion: bool
) -> float:
    """The bound, nats an image."""
    model, guide = programs(config, nets, is_diffusion=is_diffusion, num_chain=config.test_chain)
    value = jax.jit(inference.elbo(model, guide).value)
    keys = jax.random.split(key, config.num_draws)
    return float(np.mean([value(params, k, x) for k in keys])) / len(x)
