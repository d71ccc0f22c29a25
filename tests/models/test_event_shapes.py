"""A law takes whole values: what JAX would broadcast to one is refused, of every law and marginalization model here."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from lapilli.inference.diffusion import Diffusion
from lapilli.models import diffusion, mam, paths
from lapilli.models.diffusion._chain import NoisingChain, ReverseChain
from lapilli.models.imputation._gp import PrecisionNormal

D = 3
KEY = jax.random.key(0)
NETWORKS = mam.residual_mlps(D, 2, width=4, depth=1, key=KEY)
MODEL = mam.MaM(NETWORKS)
ORDERED = MODEL.with_order(jnp.arange(D))
ENSEMBLE = mam.MaM(NETWORKS, density="ensemble", orders=mam.UniformOrder(D).sample(KEY, (2,)))
NORMAL = dist.Normal(jnp.zeros(D), 1.0).to_event(1)
TIMES = jnp.array([5.0, 1.0, 0.1])
EDM = diffusion.EDM()

LAWS = {
    "MaM, chain": ORDERED,
    "MaM, ensemble": ENSEMBLE,
    "MaM, marginal": mam.MaM(NETWORKS, density="marginal"),
    "MaM.marginal": MODEL.marginal(jnp.ones(D, bool)),
    "UniformOrder": mam.UniformOrder(D),
    "FlowLaw": paths.FlowLaw(lambda t, x: -x, NORMAL),
    "PoissonNoise": diffusion.PoissonNoise((D,), 2),
    "ReverseChain": ReverseChain(Diffusion(EDM, lambda x, t: -x, (D,)), TIMES),
    "NoisingChain": NoisingChain(jnp.zeros(D), EDM, TIMES, 1),
    "PrecisionNormal": PrecisionNormal(jnp.zeros(D), jnp.eye(D)),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_law_takes_whole_values(name):
    law = LAWS[name]
    whole = jnp.zeros(law.event_shape, int) if "MaM" in name else jnp.ones(law.event_shape)
    if name == "UniformOrder":
        whole = jnp.arange(D)
    assert jnp.shape(law.log_prob(whole)) == () and jnp.isfinite(law.log_prob(whole))
    for part in (whole[..., :1], whole[..., :2], whole.ravel()[0]):
        with pytest.raises(ValueError, match=rf"has shape .* must be .*{D}.*nothing is broadcast"):
            law.log_prob(part)
        with pytest.raises(ValueError, match="nothing is broadcast"):
            jax.jit(law.log_prob)(part)


SHORT, SEEN = jnp.array([1]), jnp.ones(D, bool)
WHOLE = jnp.array([1, 0, 1])
ROWS = jnp.zeros((30, 1), int)
ENTRIES = {
    "log_marginal": lambda: MODEL.log_marginal(SHORT, SEEN),
    "log_marginal, seen": lambda: MODEL.log_marginal(WHOLE, SEEN[:1]),
    "log_conditional": lambda: MODEL.log_conditional(WHOLE, SEEN[:1], SEEN),
    "conditional_logits": lambda: MODEL.conditional_logits(SHORT, SEEN),
    "consistency_residual": lambda: MODEL.consistency_residual(KEY, SHORT),
    "consistency_residuals": lambda: MODEL.consistency_residuals(SHORT, jnp.arange(D)),
    "log_steps": lambda: MODEL.log_steps(SHORT, jnp.arange(D)),
    "condition": lambda: MODEL.condition(SHORT, SEEN),
    "condition, seen": lambda: MODEL.condition(WHOLE, SEEN[:1]),
    "with_order": lambda: MODEL.with_order(jnp.array([0])),
    "marginal": lambda: MODEL.marginal(SEEN[:1]),
    "evidence": lambda: mam.MaM(NETWORKS, evidence=SHORT),
    "BlockGibbs": lambda: mam.BlockGibbs(MODEL, 2)(KEY, SHORT),
    "bracket": lambda: mam.bracket(MODEL, lambda x: 0.0 * x.sum(), ROWS, KEY),
    "bracket, one row": lambda: mam.bracket(MODEL, lambda x: 0.0 * x.sum(), WHOLE, KEY),
    "scored": lambda: mam.scored(NETWORKS, ROWS, KEY),
    "distilled": lambda: mam.distilled(NETWORKS, ROWS, KEY),
    "any_order": lambda: mam.any_order(NETWORKS).init(KEY, ROWS),
    "distil": lambda: mam.distil(NETWORKS).init(KEY, ROWS),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_marginalization_model_takes_whole_rows(name):
    with pytest.raises(
        ValueError, match=r"has shape .* must be \(3,\), to which nothing is broadcast"
    ):
        ENTRIES[name]()


def test_one_truth_value_stands_for_a_row():
    np.testing.assert_allclose(MODEL.log_marginal(WHOLE, True), MODEL.log_marginal(WHOLE, SEEN))
    law = paths.FlowLaw(lambda t, x: -x, NORMAL)
    with pytest.raises(
        ValueError, match=r"estimate_log_prob: x has shape \(3,\).*Give \[rows, 3\]"
    ):
        law.estimate_log_prob(jnp.zeros(D), KEY)
