"""ObsDropout: hide observed cells from the classifier while it is trained."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import PyTree
from numpyro.primitives import Messenger

from ... import ppl
from ...ppl._types import Message


def obs_dropout(
    model: ppl.Program, rate: float, *, site: str = "x", seen: str = "seen", kept: str = "kept"
) -> ppl.Program:
    """The program in which the classifier sees generated values also where some observed ones stand.

    Each cell is dropped with probability `rate`, independently in every run of the program (lane, series, cell). Deterministic
    site `kept`, the mask of cells whose observed value is shown, loses the dropped ones, and `seen`, the values shown, holds
    the draw of p(x | z) there:

        kept' = kept and m,   seen' = seen where kept', else x ~ p(x | z);   m ~ Bernoulli(1 - rate).

    What does not read `kept` or `seen` is untouched: encoder, likelihood of the observed cells, missingness model.

    It is for classifiers that can tell observed cells from generated ones (`sees_mask`, `has_decay`): these come to rely on the
    former, and suffer where more is missing than in training. One that sees values alone it makes neither better nor worse; the
    table is on the page docs/explain/reproduced.md.

    Args:
        model: a program with a partially observed `site` whose cells are independent given its latents.
        rate: probability in [0, 1]. At 0 the program is the old one, to the bit.
        site: the partially observed site.
        seen: deterministic site of the values shown, of the site's shape.
        kept: deterministic boolean site of the same shape.

    Returns:
        The program, for training. Predict with `model` itself; both have the same parameters.

    Raises:
        ValueError: the rate is not in [0, 1], or the program lacks a site.

    Validity:
        m is noise, not a site: its probability never enters a weight. A bound of the new program is one of
        E_m[log p_m(y, x_o, s)] or, with a mask of its own in each particle, of log E_m[p_m(y, x_o, s)], p_m the model whose
        classifier sees through m.

    Reference: Kim et al. 2023, arXiv:2308.06738, section on ObsDropout. The released code adds log p(m) to the weights, which
    leaves K = 10 particles with an effective sample size below 2.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"obs_dropout: rate must lie in [0, 1], got {rate}.")
    if rate == 0:
        return model

    def thinned(*args: PyTree, **kwargs: PyTree) -> PyTree:
        dropout = _Dropout(ppl.rng_key("obs_dropout"), rate, f"{site}_unobserved", seen, kept)
        with dropout:
            out = model.fn(*args, **kwargs)
        absent = sorted({seen, kept, f"{site}_unobserved"} - dropout.met)
        if absent:
            raise ValueError(
                f"obs_dropout: {model!r} has no site {absent}. It acts on a program in which ppl.sample('{site}', ..., obs_mask="
                f"mask) comes first and ppl.deterministic('{kept}', mask), ppl.deterministic('{seen}', x) feed the classifier."
            )
        return out

    return ppl.Program(thinned, model.params)


class _Dropout(Messenger):
    def __init__(self, key: jax.Array, rate: float, drawn: str, seen: str, kept: str) -> None:
        super().__init__()
        self.key, self.rate = key, rate
        self.names = (drawn, seen, kept)
        self.met: set[str] = set()
        self.values: dict[str, PyTree] = {}

    def process_message(self, msg: Message) -> None:
        name, (drawn, seen, kept) = msg.get("name"), self.names
        if msg["type"] != "deterministic" or name not in (seen, kept) or drawn not in self.met:
            return
        self.met.add(name)
        value = jnp.asarray(msg["value"])
        keep = jax.random.bernoulli(self.key, 1 - self.rate, value.shape)
        if name == kept:
            msg["value"] = value & keep
        else:  # a missing cell holds its draw already
            msg["value"] = jnp.where(keep, value, self.values[drawn])

    def postprocess_message(self, msg: Message) -> None:
        if msg["type"] == "sample" and msg["name"] == self.names[0]:
            self.met.add(msg["name"])
            self.values[msg["name"]] = msg["value"]
