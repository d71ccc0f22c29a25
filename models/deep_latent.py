"""A deep latent-variable model with a discrete class and a continuous code, and its amortised guide.

Model, for each row (image) n with D pixels x_n in {0, 1}:

    k_n ~ Categorical(pi)
    z_n | k_n ~ Normal(mu_k, diag(sigma_k^2)) in R^d
    x_n | z_n ~ Bernoulli(sigmoid(decoder(z_n))), pixel by pixel.

Guide:

    q(k_n | x_n) = Categorical(softmax(classifier(x_n)))
    q(z_n | x_n, k_n) = Normal(mu_k + m(x_n, k_n), diag(s(x_n, k_n)^2)).

The class is a discrete site inside a plate with a network downstream of it, and the code a continuous site whose law
depends on the class: estimators for discrete and for continuous sites meet in one program.

Two choices decide whether the classes are used at all. The decoder's output starts at the data's mean pixel logits
(`pixel_logits`); otherwise the class whose first images happen to be darkest wins every row. And the guide centres the
code on the model's class mean, so that no class starts out further from its prior than another.

Reference: the mixture-prior variational autoencoder of Dilokthanakul et al. 2016, arXiv:1611.02648, without its second
code; the guide q(k | x) q(z | x, k) follows Kingma et al. 2014, arXiv:1406.5298.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from .. import ppl


class DeepLatent(NamedTuple):
    """A model and its guide, both functions of the pixels x, shape [rows, num_pixels], 0 or 1.

    Attributes:
        model: sites "k" [rows], "z" [rows, num_latents], "x" (observed), deterministic "pixels" [rows, num_pixels], the
            probability of each pixel given z.
        guide: sites "k" and "z"; deterministic "class_probs" [rows, num_classes], q(k | x).
    """

    model: ppl.Program
    guide: ppl.Program


class CodeEncoder(eqx.Module):
    """Mean offset and scale of the code given pixels and class: (m, s) = V act(trunk(x) + E k), where k is one-hot.

    Args:
        num_pixels: D.
        num_classes: number of classes.
        num_latents: d, numbers of a code.
        num_hidden: width of the trunk.
        key: PRNG key of the initial weights.
    """

    trunk: eqx.nn.MLP
    from_class: eqx.nn.Linear
    to_code: eqx.nn.Linear

    def __init__(
        self, num_pixels: int, num_classes: int, num_latents: int, num_hidden: int, *, key: Array
    ) -> None:
        keys = jax.random.split(key, 3)
        self.trunk = eqx.nn.MLP(
            num_pixels, num_hidden, num_hidden, 1, activation=jax.nn.silu, key=keys[0]
        )
        self.from_class = eqx.nn.Linear(num_classes, num_hidden, use_bias=False, key=keys[1])
        self.to_code = eqx.nn.Linear(num_hidden, 2 * num_latents, key=keys[2])

    def __call__(
        self, x: Float[Array, " pixels"], k: Float[Array, " classes"]
    ) -> tuple[Float[Array, " latents"], Float[Array, " latents"]]:
        """(m, s) for one row."""
        # Class and pixels meet behind the trunk, so that enumerating k runs the trunk once.
        hidden = jax.nn.silu(self.trunk(x) + self.from_class(k))
        loc, raw_scale = jnp.split(self.to_code(hidden), 2)
        return loc, jax.nn.softplus(raw_scale) + 1e-3


def programs(
    num_pixels: int,
    *,
    num_classes: int = 10,
    num_latents: int = 12,
    num_hidden: int = 256,
    pixel_logits: Float[Array, " pixels"] | None = None,
    spread: float = 1.0,
    class_site: Literal["categorical", "one_hot"] = "categorical",
    key: Array,
) -> DeepLatent:
    """The model and guide of the module's text, with freshly initialised networks.

    Parameters: "classifier" and "decoder" (equinox MLPs with one and two hidden layers), "encoder" (`CodeEncoder`),
    "class_logits" (log pi up to a constant, [num_classes]), "class_loc" and "class_scale" (mu and sigma,
    [num_classes, num_latents]). Model and guide share "class_loc".

    Args:
        num_pixels: D.
        num_classes: number of classes.
        num_latents: d.
        num_hidden: width of every hidden layer.
        pixel_logits: initial bias of the decoder's output, usually the logit of the data's mean pixel; zeros by default.
        spread: standard deviation of the initial class means.
        class_site: "categorical", values 0 to num_classes - 1; or "one_hot", the same law on one-hot rows, which relaxed
            estimators need. Parameters have the same names and shapes, and the same values for the same key.
        key: PRNG key of the initial values.

    Returns:
        `DeepLatent`.

    Validity: under strategies={"k": "enum", "z": "reparam"} the bound is exact in k, at the cost of one decoder run per class.

    Example:
        >>> import jax, numpy as np
        >>> from lapilli import inference
        >>> from lapilli.models import deep_latent
        >>> x = np.eye(4, dtype=np.float32)
        >>> model, guide = deep_latent.programs(4, num_classes=3, num_latents=2, num_hidden=8, key=jax.random.key(0))
        >>> bound = inference.elbo(model, guide, strategies={"k": "enum", "z": "reparam"})
        >>> sorted(bound.init(jax.random.key(1), x))
        ['class_loc', 'class_logits', 'class_scale', 'classifier', 'decoder', 'encoder']
    """
    keys = jax.random.split(key, 4)
    widths = {"activation": jax.nn.silu, "width_size": num_hidden}
    classifier_0 = eqx.nn.MLP(num_pixels, num_classes, depth=1, key=keys[0], **widths)
    encoder_0 = CodeEncoder(num_pixels, num_classes, num_latents, num_hidden, key=keys[1])
    decoder_0 = eqx.nn.MLP(num_latents, num_pixels, depth=2, key=keys[2], **widths)
    bias = jnp.zeros(num_pixels) if pixel_logits is None else jnp.asarray(pixel_logits, float)
    decoder_0 = eqx.tree_at(lambda net: net.layers[-1].bias, decoder_0, bias)
    loc_0 = spread * jax.random.normal(keys[3], (num_classes, num_latents))
    scale_0 = jnp.ones((num_classes, num_latents))
    is_one_hot = class_site == "one_hot"
    law = ppl.distributions.OneHotCategorical if is_one_hot else dist.CategoricalLogits

    def one_hot(k: Array) -> Array:
        return k if is_one_hot else jax.nn.one_hot(k, num_classes)

    @ppl.model
    def model(x: Array) -> None:
        decoder = ppl.module("decoder", decoder_0)
        logits = ppl.param("class_logits", jnp.zeros(num_classes))
        class_loc = ppl.param("class_loc", loc_0)
        class_scale = ppl.param("class_scale", scale_0, constraint=constraints.softplus_positive)
        with ppl.plate("rows", x.shape[0]):
            k = one_hot(ppl.sample("k", law(logits)))
            z = ppl.sample("z", dist.Normal(k @ class_loc, k @ class_scale).to_event(1))
            logits = jax.vmap(decoder)(z)
            ppl.deterministic("pixels", jax.nn.sigmoid(logits))
            ppl.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    @ppl.model
    def guide(x: Array) -> None:
        classifier = ppl.module("classifier", classifier_0)
        encoder = ppl.module("encoder", encoder_0)
        class_loc = ppl.param("class_loc", loc_0)
        with ppl.plate("rows", x.shape[0]):
            logits = jax.vmap(classifier)(x)
            ppl.deterministic("class_probs", jax.nn.softmax(logits))
            k = one_hot(ppl.sample("k", law(logits)))
            loc, scale = jax.vmap(encoder)(x, k)
            ppl.sample("z", dist.Normal(k @ class_loc + loc, scale).to_event(1))

    return DeepLatent(model, guide)
