"""A conditional diffusion model as a classifier: softmax of its bounds, with common noise for all classes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ...inference.diffusion import Diffusion
from ...ppl._checks import check_counts
from ...ppl._compat import typed_key
from ...ppl._show import shown
from .._categories import value_error
from ._bound import bound, denoising_errors


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class Classification:
    """Scores of classes, made by `classify`.

    Attributes:
        scores: bounds of log p(x | class) in nats, or minus mean squared errors, [*batch, classes].
        weighting: "bound" or "error", which of them.
        temperature: T, by which scores are divided.
    """

    scores: Float[Array, "*batch classes"]
    weighting: str
    temperature: float = 1.0

    @property
    def log_probs(self) -> Float[Array, "*batch classes"]:
        """Log softmax(scores / T), for classes that are equally likely beforehand; others: add their log probabilities."""
        return jax.nn.log_softmax(self.scores / self.temperature, -1)

    @property
    def classes(self) -> Int[Array, "*batch"]:
        """The most probable class, as its number among the contexts."""
        return jnp.argmax(self.scores, -1)

    def with_temperature(self, labels: Any) -> Classification:
        """These scores at the temperature of largest likelihood of labels, which others are then judged by.

        Args:
            labels: true classes of these points, integers [*batch]; use points that are not judged afterwards.

        Returns:
            The classification with that T, from 1e-3 to 1e4. For others' scores:
            `dataclasses.replace(other, temperature=found.temperature)`.

        Raises:
            ValueError: not one label for each point, or one that is no number of a class.

        Reference: Guo et al. 2017, arXiv:1706.04599, section 4.2.
        """
        from scipy.optimize import minimize_scalar
        from scipy.special import log_softmax

        if np.shape(labels) != self.scores.shape[:-1]:
            raise ValueError(
                f"Classification: labels have shape {np.shape(labels)}, and one is needed for each of the points "
                f"{self.scores.shape[:-1]}."
            )
        value_error("Classification: labels", np.asarray(labels)[..., None], self.scores.shape[-1])
        scores = np.asarray(self.scores, float).reshape(-1, self.scores.shape[-1])
        at = np.arange(len(scores)), np.asarray(labels, int).ravel()
        loss = lambda log_t: -log_softmax(scores * math.exp(-log_t), 1)[at].mean()
        found = minimize_scalar(loss, bounds=(math.log(1e-3), math.log(1e4)), method="bounded")
        return dataclasses.replace(self, temperature=math.exp(float(found.x)))


def classify(
    model: Callable[[PyTree], Diffusion],
    contexts: object,
    x: Float[Array, "*shape"],
    key: Array,
    *,
    num_times: int = 16,
    weighting: Literal["bound", "error"] = "bound",
    is_paired: bool = True,
    batch_size: int = 16,
) -> Classification:
    """Classes of points by the class-conditional bounds on log p(x | c) of a diffusion model.

        p(c | x) in proportion to exp(bound_c(x) / T),   T = 1 if the bounds were the log densities.

    Args:
        model: function of one context that returns the diffusion model, e.g.
            `lambda c: from_network(net, noising, shape, context=c)`.
        contexts: of the classes, a tree of arrays with the classes as leading axis; `jnp.arange(10)` for labels.
        x: points, with any leading axes.
        key: PRNG key.
        num_times: draws of time and noise for each point and class.
        weighting: "bound", in nats; "error" minus the mean squared error over even times, without the bound's weights.
        is_paired: the same times and noise for all classes, without which their differences drown in the noise's.
        batch_size: points at a time.

    Returns:
        Scores, probabilities, the best class, `with_temperature`; how sure they are and how right:
        `inference.diagnostics.expected_calibration_error(jnp.exp(found.log_probs), labels)`.

    Raises:
        ValueError: another weighting; as `bound`.

    Validity: scores are unbiased for the bounds, their softmax is not the exact posterior: gaps of the bounds differ between
    classes, and noise of a difference of some nats makes probabilities of nearly 0 and 1. They are over-confident, as a rule; a
    temperature fitted on other points lowers that. Common noise helps where points are far from all classes, as images are. At
    few draws "error" classifies better: its times lie where classes differ.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from lapilli.models import diffusion
        >>> model = lambda mean: diffusion.gaussian_mixture(diffusion.VP(), [1.0], mean[None], 1.0)
        >>> means = jnp.array([[-1.0], [1.0]])
        >>> found = diffusion.classify(model, means, jnp.array([[0.5]]), jax.random.key(0), num_times=2000)
        >>> print(f"{jnp.exp(found.log_probs)[0, 1]:.1f} of {jax.nn.sigmoid(1.0):.1f}")
        0.7 of 0.7

    Reference: Li et al. 2023, arXiv:2303.16203, equations 4 to 6; Clark and Jaini 2023, arXiv:2303.15233.
    """
    if weighting not in ("bound", "error"):
        raise ValueError(f"classify: weighting must be 'bound' or 'error', got {weighting!r}.")
    check_counts("classify", num_times=num_times, batch_size=batch_size)
    num_classes = len(jax.tree.leaves(contexts)[0])
    shape = model(jax.tree.map(lambda c: jnp.asarray(c)[0], contexts)).shape
    x = jnp.asarray(x, float)
    batch = x.shape[: x.ndim - len(shape)]

    def score(context: PyTree, x: Array, key: Array) -> Array:
        if weighting == "bound":
            return bound(model(context), x, key, num_times=num_times)
        return -denoising_errors(model(context), x, key, num_times=num_times)[1].mean(-1)

    def one(inputs: tuple[Array, Array]) -> Array:
        x, key = inputs
        keys = jnp.stack([key] * num_classes) if is_paired else jax.random.split(key, num_classes)
        return jax.vmap(score, (0, None, 0))(jax.tree.map(jnp.asarray, contexts), x, keys)

    flat = x.reshape(math.prod(batch), *x.shape[len(batch) :])
    keys = jax.random.split(typed_key(key), len(flat))
    scores = jax.lax.map(one, (flat, keys), batch_size=min(batch_size, max(1, len(flat))))
    return Classification(scores.reshape(*batch, num_classes), weighting)
