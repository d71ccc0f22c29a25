"""Heads: how the outputs of a network become the law of an episode's labels."""

from __future__ import annotations

import abc
import dataclasses
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ... import ppl
from ...ppl._precision import full_precision
from ._episodes import Points

Array = jax.Array


class Head(abc.ABC):
    """Abstract: turns network outputs into a likelihood."""

    @property
    def is_pointwise(self) -> bool:
        """Whether the law of a label depends on the network's outputs at its own point only."""
        return type(self).scores is Head.scores

    def declared(self) -> Self:
        """The head with what it learns declared as parameters of the program that is running; here nothing."""
        return self

    def scores(self, outputs: Array, support: Array, points: Points) -> Array:
        """What decides the law of a label, [episodes, n, c]; here the outputs themselves.

        Args:
            outputs: network outputs at the points whose labels are asked for, [episodes, n, k].
            support: network outputs at the support, [episodes, m, k].
            points: the support.
        """
        return outputs

    @abc.abstractmethod
    def law(self, scores: Array) -> dist.Distribution:
        """The law of labels, of batch shape [episodes, n]."""


@dataclasses.dataclass(frozen=True)
class GaussianNoise(Head):
    """Regression: y ~ Normal(output, noise), for labels that are numbers or vectors.

    Args:
        noise: standard deviation of the labels.
        num_outputs: None: labels are numbers [episodes, n], the network has one output; else vectors [episodes, n, num_outputs].

    Raises:
        ValueError: the network has another number of outputs.
    """

    noise: float
    num_outputs: int | None = None

    def law(self, scores: Array) -> dist.Distribution:
        _check_outputs(self, scores, 1)
        if self.num_outputs is None:
            return dist.Normal(scores[..., 0], self.noise)
        return dist.Normal(scores, self.noise).to_event(1)


@dataclasses.dataclass(frozen=True)
class Student(Head):
    """Regression with heavy tails: y ~ StudentT(df, output, noise), for labels that are numbers or vectors, by coordinate.

    Args:
        noise: scale of the labels.
        df: degrees of freedom.
        num_outputs: as for `GaussianNoise`.
    """

    noise: float
    df: float
    num_outputs: int | None = None

    def law(self, scores: Array) -> dist.Distribution:
        _check_outputs(self, scores, 1)
        if self.num_outputs is None:
            return dist.StudentT(self.df, scores[..., 0], self.noise)
        return dist.StudentT(self.df, scores, self.noise).to_event(1)


@dataclasses.dataclass(frozen=True)
class Tempered(Head):
    """A head of regression for predictions: draws f_s of the scores count as m + spread (f_s - m), m their mean.

    To first order these are the scores of draws from the site N(m_i, spread^2 V_i), a posterior of temperature spread^2: where a
    network is trained with a noise larger than the labels have, its posterior is as much too wide.

    Args:
        head: law of a label.
        spread: 1 leaves the draws what they are.

    Validity: `law` takes draws [S, episodes, n, c] of all scores at once; not for training.
    Reference: Wenzel et al. 2020, arXiv:2002.02405.
    """

    head: GaussianNoise | Student
    spread: float = 1.0

    def law(self, scores: Array) -> dist.Distribution:
        mean = scores.mean(0)
        return self.head.law(mean + self.spread * (scores - mean))


@dataclasses.dataclass(frozen=True)
class GaussianWithScale(Head):
    """Regression by a network that tells its own doubt: y ~ Normal(output_1, floor + softplus(output_2)), by coordinate.

    Args:
        floor: least standard deviation.
        num_outputs: None: labels are numbers, the network has two outputs; else vectors, and it has 2 num_outputs, means first.
    """

    floor: float
    num_outputs: int | None = None

    def law(self, scores: Array) -> dist.Distribution:
        _check_outputs(self, scores, 2)
        mean, raw = jnp.split(scores, 2, axis=-1)
        scale = self.floor + jax.nn.softplus(raw)
        if self.num_outputs is None:
            return dist.Normal(mean[..., 0], scale[..., 0])
        return dist.Normal(mean, scale).to_event(1)


@dataclasses.dataclass(frozen=True)
class Softmax(Head):
    """Classification with one score per class: y ~ Categorical(softmax(scores))."""

    def law(self, scores: Array) -> dist.Distribution:
        return dist.CategoricalLogits(scores)


@dataclasses.dataclass(frozen=True)
class NearestCentroid(Softmax):
    """Classification without a readout: scores_k = scale cos(c_k, z), c_k the mean output of the support's points of class k.

    Args:
        num_classes: classes 0 ... num_classes - 1. A class without a point in the support has the centroid 0, hence score 0.
        scale: inverse temperature.
        is_learned: the scale is a parameter of the program, "head_log_scale", that starts at `scale`. Averaged over draws of
            weights, probabilities are more timid than those of one network at the same scale.

    Reference: Snell et al. 2017, arXiv:1703.05175; the cosine of Hu et al. 2022, arXiv:2204.07305.
    """

    num_classes: int
    scale: float | Array = 10.0
    is_learned: bool = False

    def declared(self) -> NearestCentroid:
        if not self.is_learned:
            return self
        log_scale = ppl.param("head_log_scale", jnp.log(self.scale))
        return dataclasses.replace(self, scale=jnp.exp(log_scale))

    @full_precision
    def scores(self, outputs: Array, support: Array, points: Points) -> Array:
        members = jax.nn.one_hot(points.y, self.num_classes) * points.mask[..., None]
        sums = jnp.einsum("emc,emk->eck", members, support)
        centroids = sums / jnp.maximum(members.sum(1), 1.0)[..., None]
        return self.scale * jnp.einsum("enk,eck->enc", _unit(outputs), _unit(centroids))


def _check_outputs(
    head: GaussianNoise | Student | GaussianWithScale, scores: Array, per: int
) -> None:
    """Refuse scores of which some would not be read, or be read twice: a label's coordinate takes `per` of them."""
    needed = per * (1 if head.num_outputs is None else head.num_outputs)
    if np.shape(scores)[-1:] != (needed,):
        raise ValueError(
            f"{type(head).__name__}: with num_outputs={head.num_outputs} a network has {needed} outputs, and its scores have "
            f"shape {np.shape(scores)}. Give the length of labels as num_outputs=, and a network with as many as that needs."
        )


def _unit(z: Array) -> Array:
    """Vectors of length one; zero stays zero, with a finite derivative."""
    # The square of a long one would be infinite, and its direction lost.
    z = z / jnp.maximum(jax.lax.stop_gradient(jnp.abs(z).max(-1, keepdims=True)), 1.0)
    return z * jax.lax.rsqrt((z**2).sum(-1, keepdims=True) + 1e-12)
