"""The family as one program with switches; see the package's text."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array

from ... import ppl
from ...ppl._precision import full_precision
from .._series import Series
from ._gp import cauchy_kernel, own_cholesky, smoothed
from ._hidden_law import hidden_law
from ._networks import (
    Classifier,
    GaussianHead,
    Kind,
    Mechanism,
    SelfMasking,
    missingness as mechanism_of,
)

MIN_LOOK_SCALE = 1e-2
# Of a network's freshly initialised looks at a channel's own latent, relative to softplus(.): a tight one where a cell is seen.
LOOK_AT_SEEN, LOOK_AT_MISSING = 0.3, 15.0


class Imputer(NamedTuple):
    """A model and its guide, both functions of one `Series`.

    Attributes:
        model: sites "z" [series, latents, time], white noise that a GP prior mixes over time; "x", partially observed, [series,
            time, channels]; and, as switched on, "s" and "y". Deterministic: "mixing" L [series, time, time], "path" L z [series,
            time, latents], "x_loc", "step_log_prob" and "step_log_draw", log p(x_o, x_m, s | z) / q(x_m | z) and log q(x_m | z)
            of each step, q the law that missing cells are drawn from, and, with a classifier, "kept", "seen" and "logits".
            Cells that hide themselves (`missingness="self_masking"`) are drawn from about p(x_m | z, s), `hidden_law`, and
            factor "x_weight" is log p(x_m | z) / q(x_m | z): the density is the same, and weights vary far less. Other
            missing cells are drawn from p(x_m | z) itself.
        guide: site "z". Its law is that of z after one noisy look at each step of the paths A z; deterministic: "looked" A
            [series, time, time], "looks" and "look_precision" [series, latents, time].
    """

    model: ppl.Program
    guide: ppl.Program


def programs(
    num_channels: int,
    *,
    num_classes: int | None = None,
    missingness: Mechanism | None = None,
    prior: Literal["normal", "gp"] = "gp",
    length_scale: float = 7.0,
    observation: Literal["normal", "student_t"] = "normal",
    num_latents: int | None = None,
    has_skip: bool = True,
    num_hidden: int = 32,
    encoder: Kind = "gru",
    decoder: Kind = "conv",
    classifier: Kind = "gru",
    has_decay: bool = False,
    sees_mask: bool = False,
    is_causal: bool = False,
    min_scale: float = 1e-2,
    key: Array,
) -> Imputer:
    """Model and guide of one member of the family, with freshly initialised networks.

    Parameters: equinox modules "encoder", "decoder", and, as switched on, "missingness", "classifier"; "df" [channels] with
    Student-t observations.

    Args:
        num_channels: D.
        num_classes: C, switches p(y | x) on; None for models without labels.
        missingness: the mechanism of p(s | x), see `imputation.missingness`; None for models of data missing at random.
        prior: "normal", N(0, I) at each step, or "gp", a path from `cauchy_kernel` at each series' own times.
        length_scale: of the kernel, in the unit of the times (steps, where none are given).
        observation: p(x | z) of a cell, Normal or Student-t (degrees of freedom learned per channel, above 3).
        num_latents: d; by default D + 4, or 8 without `has_skip`.
        has_skip: latent path i < D starts as channel i. The decoder adds it to the channel's location, and the encoder's look at
            it starts at the observed values, loose where there is none: with a GP prior, the untrained imputer is near Gaussian
            process regression channel by channel. Needs d >= D.
        num_hidden: H of every backbone.
        encoder: backbone of q(z | x_o, s); it sees the observed values, zero elsewhere, and the mask, and gives one noisy look
            at the latent path for each step, whose product with the prior is the guide (`smoothed`).
        decoder: backbone of p(x | z), causal: step t sees the path up to t, so that particles can be drawn step by step.
        classifier: backbone of p(y | x).
        has_decay: the classifier sees missing cells through `Decay`.
        sees_mask: the classifier sees the mask, p(y | x, s).
        is_causal: encoder and guide see no later step either, so that draws of the first steps do not depend on the rest. The
            guide is then diagonal in the white noise z, whose first t numbers make the first t steps of the path.
        min_scale: least standard deviation of a cell in p(x | z), in the unit of the values.
        key: PRNG key of the initial values.

    Returns:
        `Imputer`. Train it with `inference.iwelbo(*imputer, num_particles=K, num_imputations=J, per="rows")`.

    Raises:
        ValueError: an unknown switch; a classifier's option without a classifier.

    Example:
        >>> import jax, numpy as np
        >>> from lapilli import inference
        >>> from lapilli.models import imputation
        >>> data = imputation.series(np.array([[[0.1], [np.nan], [0.4]]]), labels=[1])
        >>> imputer = imputation.programs(1, num_classes=2, missingness="self_masking", key=jax.random.key(0))
        >>> bound = inference.iwelbo(*imputer, num_particles=5, per="rows")
        >>> sorted(bound.init(jax.random.key(1), data))
        ['classifier', 'decoder', 'encoder', 'missingness']

    Reference: Kim et al. 2023, arXiv:2308.06738 (supnotMIWAE); its relatives are in the package's text.
    """
    if num_latents is None:
        num_latents = num_channels + 4 if has_skip else 8
    too_few = has_skip and num_latents < num_channels
    _check_switches(num_classes, prior, observation, has_decay or sees_mask, too_few)
    keys = jax.random.split(key, 4)
    encoder_0 = GaussianHead(
        encoder, 2 * num_channels, num_latents, num_hidden,
        min_scale=MIN_LOOK_SCALE, is_causal=is_causal, key=keys[0],
    )  # fmt: skip
    decoder_0 = GaussianHead(
        decoder, num_latents, num_channels, num_hidden,
        min_scale=min_scale, is_causal=True, key=keys[1],
    )  # fmt: skip
    missingness_0 = missingness and mechanism_of(missingness, num_channels, num_hidden, key=keys[2])
    classifier_0 = num_classes and Classifier(
        classifier, num_channels, num_classes, num_hidden,
        has_decay=has_decay, sees_mask=sees_mask, key=keys[3],
    )  # fmt: skip

    def mixing(times: Array, valid: Array) -> Array:
        """L of each series, [series, time, time], which makes the paths L z."""
        if prior == "normal":
            return unmixed(times)
        return own_cholesky(cauchy_kernel(times, length_scale=length_scale), valid)

    def unmixed(times: Array) -> Array:
        return jnp.broadcast_to(jnp.eye(times.shape[1]), (*times.shape, times.shape[1]))

    @ppl.model
    def model(data: Series) -> None:
        valid, cells = jnp.asarray(data.valid), jnp.asarray(data.observed)
        times = jnp.asarray(data.times)
        network = ppl.module("decoder", decoder_0)
        mechanism = ppl.module("missingness", missingness_0) if missingness_0 else None
        classify = ppl.module("classifier", classifier_0) if classifier_0 else None
        with ppl.plate("rows", len(valid)):
            white = dist.Normal(0, 1).expand([len(valid), num_latents, valid.shape[1]])
            z = ppl.sample("z", white.to_event(2))
            matrix = ppl.deterministic("mixing", mixing(times, valid))
            with full_precision():
                path = ppl.deterministic("path", jnp.einsum("nts,nds->ntd", matrix, z))
            loc, scale = jax.vmap(network)(path, times, valid)
            loc = loc + path[..., :num_channels] if has_skip else loc
            ppl.deterministic("x_loc", loc)
            if observation == "normal":
                law = dist.Normal(loc, scale)
            else:
                above = dist.constraints.greater_than(3.0)
                df = ppl.param("df", jnp.full(num_channels, 8.0), constraint=above)
                law = dist.StudentT(df, loc, scale)
            hidden, drawn_from = valid[..., None] & ~cells, law
            if isinstance(mechanism, SelfMasking):
                drawn_from = hidden_law(law, -mechanism.slope, -mechanism.bias, hidden)
            x = ppl.sample("x", drawn_from.to_event(2), obs=data.values, obs_mask=cells)
            # Else every loop that reads the draws makes them anew from random bits.
            x = jax.lax.optimization_barrier(x)
            values = jnp.where(cells, data.values, 0)
            step_log_prob = jnp.where(cells, law.log_prob(values), 0).sum(-1)
            log_draw = jnp.where(cells, 0, drawn_from.log_prob(x))
            ppl.deterministic("step_log_draw", log_draw.sum(-1))
            if drawn_from is not law:
                ratio = jnp.where(hidden, law.log_prob(x) - log_draw, 0).sum(-1)
                ppl.factor("x_weight", ratio.sum(-1))
                step_log_prob += ratio
            if mechanism is not None:
                seen_law = dist.BernoulliLogits(jax.vmap(jax.vmap(mechanism))(x))
                seen_law = seen_law.mask(jnp.broadcast_to(valid[..., None], cells.shape))
                ppl.sample("s", seen_law.to_event(2), obs=cells.astype(x.dtype))
                step_log_prob += seen_law.log_prob(cells.astype(x.dtype)).sum(-1)
            ppl.deterministic("step_log_prob", step_log_prob)
            if classify is not None:
                # What the classifier sees of the series: the two places at which `obs_dropout` acts.
                kept = ppl.deterministic("kept", cells)
                seen = ppl.deterministic("seen", x)
                logits = jax.vmap(classify)(seen, kept, times, valid)
                ppl.deterministic("logits", logits)
                if data.labels is not None:
                    ppl.sample("y", dist.CategoricalLogits(logits), obs=data.labels)

    @ppl.model
    def guide(data: Series) -> None:
        valid, cells = jnp.asarray(data.valid), jnp.asarray(data.observed)
        times = jnp.asarray(data.times)
        network = ppl.module("encoder", encoder_0)
        with ppl.plate("rows", len(valid)):
            values = jnp.where(cells, data.values, 0)
            features = jnp.concatenate([values, cells.astype(values.dtype)], -1)
            pseudo, scale = jax.vmap(network)(features, times, valid)
            if has_skip:
                others = ((0, 0), (0, 0), (0, num_latents - num_channels))
                pseudo = pseudo + jnp.pad(values, others)
                start = jnp.where(cells, LOOK_AT_SEEN, LOOK_AT_MISSING)
                scale = scale * jnp.pad(start, others, constant_values=1.0)
            # Steps that do not exist keep the prior.
            precision = jnp.where(valid[:, None], scale.mT**-2, 0)
            looks = ppl.deterministic("looks", pseudo.mT)
            precision = ppl.deterministic("look_precision", precision)
            if prior == "gp" and not is_causal:
                matrix = mixing(times, valid)
                law = dist.Independent(smoothed(matrix, looks, precision), 1)
            else:
                matrix = unmixed(times)
                loc, scale = looks * precision / (1 + precision), (1 + precision) ** -0.5
                law = dist.Independent(dist.Normal(loc, scale), 2)
            ppl.deterministic("looked", matrix)
            ppl.sample("z", law)

    return Imputer(model, guide)


def _check_switches(
    num_classes: int | None, prior: str, observation: str, asks_classifier: bool, too_few: bool
) -> None:
    problems = []
    if prior not in ("normal", "gp"):
        problems.append(f"prior must be 'normal' or 'gp', got {prior!r}")
    if observation not in ("normal", "student_t"):
        problems.append(f"observation must be 'normal' or 'student_t', got {observation!r}")
    if num_classes is not None and num_classes < 2:
        problems.append(f"num_classes must be at least 2 or None, got {num_classes}")
    if num_classes is None and asks_classifier:
        problems.append("has_decay and sees_mask are options of a classifier: give num_classes")
    if too_few:
        problems.append("has_skip needs num_latents >= num_channels; give more, or has_skip=False")
    if problems:
        raise ValueError(f"imputation.programs: {'; '.join(problems)}.")
