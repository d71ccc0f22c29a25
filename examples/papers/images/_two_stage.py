"""A variational autoencoder of grey levels, and diffusion models of the same images, with or without its image as the condition.

VAE:        z ~ p(z),  x_i | z ~ Categorical(decoder(z)_i),  q(z | x) normal.                   xhat = E[x | z]
diffusion:  x ~ chain down to a little noise, then a level for each pixel (`diffusion.bound(levels=)`).
two stages: z ~ p(z),  x | z ~ diffusion given xhat(z), the VAE's encoder and decoder frozen. Its bound is

    log p(x) >= E_q [log p(z) - log q(z | x) + bound(x | xhat(z))],

in which the reconstruction of the first stage has no part. All three are laws on the same 8^196 images.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from _mnist import GRID, LEVELS, SIZE, nearest_levels
from sklearn.mixture import GaussianMixture

from lapilli import inference, ppl
from lapilli.models import diffusion

VP = diffusion.VP()
LAST = 0.014  # levels are 8 standard deviations apart there


class Sizes(NamedTuple):
    vae_steps: int = 1_500
    diffusion_steps: int = 1_200
    num_codes: int = 8
    vae_width: int = 128
    width: int = 192
    batch: int = 128
    num_code_draws: int = 10  # of each training image, for the second stage


def fitted(
    objective: Any, args: tuple, num_steps: int, key: jax.Array, batch: int = 128, *, average: float = 0.998
) -> Any:  # fmt: skip
    """Averaged parameters of Adam, the rate falling to zero along a cosine."""
    return inference.fit(
        objective, optax.adam(optax.cosine_decay_schedule(2e-3, num_steps)), args, num_steps=num_steps,
        key=key, subsample={"rows": batch}, average=average, progress=False,
    ).params  # fmt: skip


class VAE:
    """The first stage, trained by its ELBO on levels [rows, 196].

    Attributes:
        model, guide: bound programs of the levels.
    """

    def __init__(self, levels: np.ndarray, sizes: Sizes, key: jax.Array) -> None:
        self.num_codes = sizes.num_codes
        keys = jax.random.split(key, 3)
        mlp = lambda a, b, key: eqx.nn.MLP(a, b, sizes.vae_width, 2, jax.nn.silu, key=key)
        nets = mlp(SIZE, 2 * sizes.num_codes, keys[0]), mlp(sizes.num_codes, SIZE * LEVELS, keys[1])
        model, guide = self._programs(*nets)
        params = fitted(inference.elbo(model, guide), (jnp.asarray(levels),), sizes.vae_steps, keys[2], sizes.batch)  # fmt: skip
        self.model, self.guide = model.bind(params), guide.bind(params)
        self._encode, self._decode = (
            with_params(net, params[name])
            for name, net in zip(("encoder", "decoder"), nets, strict=True)
        )

    def _programs(self, encoder: Any, decoder: Any) -> Any:
        normal = dist.Normal(jnp.zeros(self.num_codes), 1.0).to_event(1)

        @ppl.model
        def model(x: Any) -> None:
            decode = ppl.module("decoder", decoder)
            with ppl.plate("rows", x.shape[0]):
                z = ppl.sample("z", normal)
                logits = jax.vmap(decode)(z).reshape(len(z), SIZE, LEVELS)
                ppl.sample("x", dist.CategoricalLogits(logits).to_event(1), obs=x)

        @ppl.model
        def guide(x: Any) -> None:
            encode = ppl.module("encoder", encoder)
            with ppl.plate("rows", x.shape[0]):
                ppl.sample("z", _posterior(encode, x))

        return model, guide

    def posterior(self, levels: Any) -> dist.Distribution:
        """q(z | x)."""
        return _posterior(self._encode, jnp.asarray(levels))

    def logits(self, z: Any) -> jax.Array:
        """Of levels, [rows, 196, 8]."""
        return jax.vmap(self._decode)(z).reshape(len(z), SIZE, LEVELS)

    def image(self, z: Any) -> jax.Array:
        """xhat, in points, [rows, 196]."""
        return jax.nn.softmax(self.logits(z)) @ GRID

    def log_weights(self, levels: Any, key: jax.Array, num_draws: int = 20) -> np.ndarray:
        """Log p(x, z) / q(z | x) in nats, [draws, images]: their mean is the ELBO, their log-mean-exp the IWELBO."""

        def one(key: jax.Array) -> jax.Array:
            drawn = self.guide.simulate(key, jnp.asarray(levels))
            scored = self.model.trace(drawn.choices, jnp.asarray(levels)).log_probs
            return scored["x"] + scored["z"] - drawn.log_probs["z"]

        return np.asarray(jax.lax.map(one, jax.random.split(key, num_draws)))


def _posterior(encode: Any, levels: Any) -> dist.Distribution:
    mean, log_scale = jnp.split(jax.vmap(encode)(jnp.asarray(GRID)[levels]), 2, axis=-1)
    return dist.Normal(mean, jnp.exp(log_scale - 1)).to_event(1)


class CodePrior(NamedTuple):
    """A law of codes: draws by number and key, and its log density."""

    sample: Callable[[int, jax.Array], jax.Array]
    log_prob: Callable[[Any], jax.Array]


def normal_prior(num_codes: int) -> CodePrior:
    """Normal(0, I)."""
    law = dist.Normal(jnp.zeros(num_codes), 1.0).to_event(1)
    return CodePrior(lambda n, key: law.sample(key, (n,)), law.log_prob)


def mixture_prior(codes: Any, num_components: int, seed: int) -> CodePrior:
    """A mixture of Normals fitted to drawn codes."""
    found = GaussianMixture(num_components, reg_covar=1e-3, random_state=seed).fit(np.asarray(codes, float))  # fmt: skip
    law = dist.MixtureSameFamily(
        dist.Categorical(jnp.asarray(found.weights_, jnp.float32)),
        dist.MultivariateNormal(
            jnp.asarray(found.means_, jnp.float32), jnp.asarray(found.covariances_, jnp.float32)
        ),
    )
    return CodePrior(lambda n, key: law.sample(key, (n,)), law.log_prob)


class Around(eqx.Module):
    """Logits of levels around the mean m of the context, an image or a set of them: net_iv - (v - m_i)^2 / (2 spread^2)."""

    net: Any
    log_spread: jax.Array
    takes_context: bool = eqx.field(static=True, default=True)

    def __call__(self, x: Any, level: Any, context: Any) -> Any:
        mean = context.value.reshape(-1, len(x)).mean(0)
        away = (GRID - mean[:, None]) * jnp.exp(-self.log_spread)
        return self.net(x, level, context) - 0.5 * jnp.square(away)


class ImageDiffusion:
    """A diffusion model of points [196], given a context that an encoder reads, or nothing.

    Args:
        points: [rows, 196].
        context: arrays with as many rows, or None.
        sizes: of network and training.
        key: PRNG key.
        encoder: of one context.
        kind: "levels" (`diffusion.LevelNet`), "around" (that of `Around`), or "plain" for an MLP that knows of no levels.
    """

    def __init__(
        self, points: Any, context: Any, sizes: Sizes, key: jax.Array, *, encoder: Any = None,
        kind: Literal["levels", "around", "plain"] = "levels",
    ) -> None:  # fmt: skip
        keys, shape = jax.random.split(key), (SIZE,) if kind == "plain" else (SIZE, LEVELS)
        net: Any = diffusion.MLP(shape, encoder=encoder, width=sizes.width, key=keys[0])
        net = Around(net, jnp.zeros(())) if kind == "around" else net
        net = net if kind == "plain" else diffusion.LevelNet(net, GRID)
        objective = diffusion.score_matching(net, VP, drop_context=0.0)
        context = None if context is None else jnp.asarray(context)
        params = fitted(objective, (jnp.asarray(points), context), sizes.diffusion_steps, keys[1], sizes.batch)  # fmt: skip
        self.net = with_params(net, params["network"])

    def samples(self, contexts: Any, num: int, num_steps: int, key: jax.Array) -> np.ndarray:
        """Levels [num, 196] by DDIM from `num` contexts, or none; equal keys give equal noise to all."""
        start = jax.random.normal(key, (num, SIZE))
        return nearest_levels(_ddim(self.net, contexts, start, num_steps))

    def bound(self, levels: Any, contexts: Any, key: jax.Array, num_times: int = 100) -> np.ndarray:
        """An unbiased estimate of the bound on log p(levels), nats of each image; equal keys give equal noise."""
        keys = jax.random.split(key, len(levels))
        return np.asarray(_bounds(self.net, jnp.asarray(GRID)[levels], contexts, keys, num_times))

    def density_bound(self, points: Any, key: jax.Array, num_times: int = 100) -> np.ndarray:
        """That on the log density of points, nats of each."""
        keys = jax.random.split(key, len(points))
        return np.asarray(
            _bounds(self.net, jnp.asarray(points), None, keys, num_times, is_density=True)
        )


def with_params(net: Any, params: Any) -> Any:
    """A network with fitted parameters."""
    return eqx.combine(params, eqx.filter(net, eqx.is_inexact_array, inverse=True))


# Compiled once for networks of equal shapes, as those of all seeds are.


@eqx.filter_jit
def _ddim(net: Any, contexts: Any, start: Any, num_steps: int) -> Any:
    times: Any = np.append(np.asarray(VP.times(num_steps))[:-1], 0.0)

    def one(context: Any, start: Any) -> Any:
        model = diffusion.from_network(net, VP, (SIZE,), context=context)
        return diffusion.ddim(model, jax.random.key(0), times, num_samples=1, start=start[None])[0]

    return jax.vmap(one, (None if contexts is None else 0, 0))(contexts, start)


@eqx.filter_jit
def _bounds(
    net: Any, points: Any, contexts: Any, keys: Any, num_times: int, is_density: bool = False
) -> Any:
    end: dict[str, Any] = {"at": 1e-3} if is_density else {"at": LAST, "levels": GRID}

    def one(inputs: Any) -> Any:
        x, context, key = inputs
        model = diffusion.from_network(net, VP, (SIZE,), context=context)
        return diffusion.bound(model, x, key, num_times=num_times, **end)

    return jax.lax.map(one, (points, contexts, keys), batch_size=50)


class TwoStages(NamedTuple):
    """A VAE and a diffusion model given its image."""

    vae: VAE
    refiner: ImageDiffusion

    @classmethod
    def trained(cls, vae: VAE, levels: np.ndarray, sizes: Sizes, key: jax.Array) -> "TwoStages":
        """The second stage sees images of *drawn* codes: those of means would be sharper than any it meets later."""
        keys = jax.random.split(key, 3)
        z = vae.posterior(levels).sample(keys[0], (sizes.num_code_draws,))
        context = jax.lax.map(vae.image, z).reshape(-1, SIZE)
        points = np.tile(GRID[levels], (sizes.num_code_draws, 1))
        encoder = eqx.nn.MLP(SIZE, 32, sizes.width, 1, jax.nn.silu, key=keys[1])
        return cls(vae, ImageDiffusion(points, context, sizes, keys[2], encoder=encoder))

    def bounds(
        self, levels: Any, priors: Mapping[str, CodePrior], key: jax.Array, num_times: int = 50
    ) -> dict[str, np.ndarray]:
        """The joint bound by prior of codes, nats of each image: the mean of two codes; the image's part is common to priors."""
        law, found = self.vae.posterior(levels), {name: [] for name in priors}
        for k in jax.random.split(key):
            z = law.sample(k)
            image = self.refiner.bound(levels, self.vae.image(z), k, num_times) - np.asarray(law.log_prob(z))  # fmt: skip
            for name, prior in priors.items():
                found[name].append(image + np.asarray(prior.log_prob(z)))
        return {name: np.mean(values, 0) for name, values in found.items()}
