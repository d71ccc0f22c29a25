"""The list of faults that are mended: what it says, and that a mend without a fault is not applied."""

import subprocess
import sys
import types
import typing
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints

import lapilli
from lapilli import _compiler, _workarounds
from lapilli.ppl.distributions import mends
from lapilli.ppl.distributions.mends import _discrete, _mend

EXACT_LOSS = lambda x, y: jax.nn.softplus(x) - x * y
KINKED = lambda x, y: jnp.clip(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))) - x * y
CURVED = lambda x, y: 0.5 * x + 0.25 * x**2 - x * y  # the slope alone is right


@pytest.fixture(autouse=True)
def no_version_is_known_to_be_faulty(monkeypatch):
    monkeypatch.setattr(_mend, "FAULTY", frozenset())


def mend(theirs):
    owner = types.SimpleNamespace(loss=theirs)
    found = _mend.Mend(
        "loss",
        owner,
        "loss",
        EXACT_LOSS,
        lambda loss, x, zero, one: loss(x, zero),
        (0.5, 0.25),
        "The loss is wrong.",
    )
    return owner, found


def test_a_right_function_stays_and_is_put_back():
    right = lambda x, y: jnp.logaddexp(x, 0.0) - x * y
    owner, found = mend(right)
    assert owner.loss is not right
    assert owner.loss(1.0, 1.0) == right(1.0, 1.0)
    assert owner.loss is right
    assert not found.record().is_applied and "which is (0.5, 0.25)" in found.record().reason


@pytest.mark.parametrize("theirs", [KINKED, CURVED], ids=["slope", "curvature"])
def test_a_wrong_function_gives_way(theirs):
    owner, found = mend(theirs)
    assert jax.grad(owner.loss)(0.0, 0.0) == 0.5
    assert owner.loss is EXACT_LOSS
    assert found.record().is_applied and "not (0.5, 0.25)" in found.record().reason


def test_functions_that_share_a_fault_are_replaced_together():
    owner = types.SimpleNamespace(loss=KINKED, twice=lambda x: 0.0)
    found = _mend.Mend(
        "loss", owner, "loss", EXACT_LOSS, lambda loss, x, zero, one: loss(x, zero),
        (float(np.log(2)), 0.5), "The loss is wrong.", order=0, also=[(owner, "twice", lambda x: 2 * x)],
    )  # fmt: skip
    assert owner.twice(3.0) == 6.0 and owner.loss is EXACT_LOSS
    assert found.found == (float(np.float32(np.log(2))), 0.0)


def test_the_first_use_may_be_inside_of_transformations():
    owner, _ = mend(KINKED)
    slopes = jax.jit(jax.vmap(jax.grad(lambda x: owner.loss(x, 0.0))))(jnp.zeros(2))
    assert slopes.tolist() == [0.5, 0.5]


def test_a_function_kept_from_before_the_test_follows_it():
    owner, _ = mend(KINKED)
    kept = owner.loss
    kept(0.0, 0.0)
    assert jax.grad(kept)(0.0, 0.0) == 0.5  # and no recursion


def test_versions_that_are_taken_to_be_faulty_are():
    assert numpyro.__version__ not in _mend.FAULTY or not any(m.is_right() for m in mends.MENDS)


def test_importing_leaves_the_formulas_alone(tmp_path):
    code = (
        "from numpyro.distributions import discrete as d; theirs = d.binary_cross_entropy_with_logits\n"
        "from lapilli import ppl; assert d.binary_cross_entropy_with_logits.__wrapped__ is theirs\n"
        "assert all(m.found is None for m in ppl.distributions.mends.MENDS)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.slow  # tries every formula: two hundred small programs
def test_the_list_says_what_was_found_in_which_version():
    found = {w.name: w for w in lapilli.workarounds()}
    assert list(found) == [
        "xla-cpu-sums", "xla-folded-constants", *(mend.name for mend in mends.MENDS), "numpyro-handler-stack", "numpyro-products",
        "numpyro-traced-arguments", "numpyro-lazy-modules",
    ]  # fmt: skip
    assert len(set(found)) == len(mends.MENDS) + 6
    assert found["xla-cpu-sums"].package == f"jaxlib {version('jaxlib')}"
    for mend in mends.MENDS:
        assert found[mend.name].package == f"numpyro {numpyro.__version__}"
        for owner, attribute, ours in mend.places:
            assert found[mend.name].is_applied == (getattr(owner, attribute) is ours)
    assert "applied" in repr(lapilli.workarounds())


def test_modules_that_were_joined_again_are_named():
    record = _workarounds._lazy_modules(["numpyro.infer"])
    assert record.is_applied and record.reason == "Joined again: numpyro.infer."
    assert not _workarounds._lazy_modules([]).is_applied


def test_the_list_is_printed_one_a_line():
    record = lapilli.Workaround("sums", "xla 1", "Sums are wrong.", False, "They are right here.")
    assert repr(record) == "sums (xla 1): not applied. Sums are wrong. They are right here."
    both = _workarounds.Workarounds((record, record))
    assert repr(both) == f"{record!r}\n{record!r}"


def test_the_record_of_a_fault_says_who_set_the_flag_and_who_came_too_late(monkeypatch):
    right = {"now": True, "without flags": False}
    fault = _compiler.Fault(
        "sums", "Sums are wrong.", ("--flag", "off"), (0,), (9,),
        lambda o: right["without flags" if o else "now"], {"flag": "on"},
    )  # fmt: skip
    record = lambda: _compiler._record(fault)
    monkeypatch.setattr(_compiler, "_ours", {"sums"})
    assert record().is_applied and "set by lapilli" in record().reason
    monkeypatch.setattr(_compiler, "_ours", set())
    assert not record().is_applied and "set by the user" in record().reason
    right["without flags"] = True
    assert "does not show on this processor" in record().reason
    right["now"] = False
    assert not record().is_applied and "JAX had started" in record().reason
    fault = fault._replace(end=(0,))
    assert "not concerned" in record().reason


def test_probabilities_of_0_and_1_have_derivatives():
    t = jnp.array([0.0, 0.25, 1.0])
    no = jax.vmap(jax.grad(lambda t: dist.Bernoulli(t).log_prob(0)))(t[:2])
    yes = jax.vmap(jax.grad(lambda t: dist.Bernoulli(t).log_prob(1)))(t[1:])
    np.testing.assert_allclose(no, [-1, -4 / 3], rtol=1e-6)
    np.testing.assert_allclose(yes, [4, 1], rtol=1e-6)


def test_clamped_probabilities_keep_their_values():
    t = jnp.array([0.0, 1e-30, 1e-3, 0.5, 1 - 1e-6, 1.0, 1.0 + 1e-6, -1e-9])
    finfo = jnp.finfo(t.dtype)
    clipped = jnp.clip(t, finfo.tiny, 1 - finfo.eps)
    found = _discrete.clamped(t)
    np.testing.assert_allclose(found, clipped, rtol=3e-7, atol=3e-38)
    assert ((found > 0) & (found < 1)).all()


def mixture_of(weights, locs=(0.0, 1.0), **kwargs):
    return dist.MixtureSameFamily(
        dist.CategoricalProbs(weights, **kwargs), dist.Normal(jnp.array(locs), 1.0), **kwargs
    )


@pytest.mark.slow
def test_weights_of_0_have_derivatives():
    f = lambda w, x: mixture_of(jnp.stack([w, 1 - w])).log_prob(x)
    for x in (-1.0, 0.4, 3.0):
        ratio = np.exp(0.5 - x)
        slopes = [g(0.0, x) for g in (jax.grad(f), jax.grad(jax.grad(f)))]
        np.testing.assert_allclose(slopes, [ratio - 1, -((ratio - 1) ** 2)], rtol=1e-5)
        np.testing.assert_allclose(jax.jit(jax.grad(f))(1.0, x), 1 - 1 / ratio, rtol=1e-5)


@pytest.mark.slow
def test_mixtures_keep_their_values_and_other_derivatives():
    x, loc = jnp.linspace(-3.0, 3.0, 7)[:, None], jnp.array([[0.0, 1.0, 40.0]] * 3)
    weights = jnp.array([[0.2, 0.5, 0.3], [0.0, 0.6, 0.4], [1.0, 0.0, 0.0]])

    def theirs(loc, x):
        parts = dist.CategoricalProbs(weights).logits + dist.Normal(loc, 1.0).log_prob(x[..., None])
        return jax.nn.logsumexp(parts, axis=-1)

    ours = lambda loc, x: mixture_of(weights, loc).log_prob(x)
    for argument in (0, 1):
        value = lambda f, a=argument: jax.vjp(f, loc, x)[1](jnp.ones((7, 3)))[a]
        np.testing.assert_allclose(value(ours), value(theirs), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours(loc, x), theirs(loc, x), rtol=1e-6)


def test_a_component_that_is_far_denser_than_the_mixture_leaves_the_value_alone():
    f = lambda w: mixture_of(jnp.stack([w, 1 - w]), (0.0, 30.0)).log_prob(0.0)
    value, slope = jax.value_and_grad(f)(0.0)
    np.testing.assert_allclose(value, dist.Normal(30.0, 1.0).log_prob(0.0), rtol=1e-6)
    assert slope > 1e30  # e^450: beyond the type


def test_values_outside_of_a_mixture_are_impossible():
    parts = [dist.Uniform(a, a + 1, validate_args=False) for a in (0, 2)]
    weights = dist.CategoricalProbs(jnp.array([0.3, 0.7]))
    law = dist.MixtureGeneral(weights, parts, support=dist.constraints.real)
    found = law.log_prob(jnp.array([0.5, 1.5, 2.5]))
    np.testing.assert_allclose(jnp.exp(found), [0.3, 0.0, 0.7], rtol=1e-6)


class Kept(constraints.Constraint):
    """All values are allowed; notes whether what is computed of constants is known."""

    is_discrete, event_dim = False, 0

    def __init__(self):
        self.known = []

    def __call__(self, x):
        self.known.append(not isinstance(jnp.ones(3) * 2, jax.core.Tracer))
        return x == x


def test_constants_that_go_with_a_traced_argument_are_traced():
    """NumPyro computes them at once, each by a program of its own, and finds nothing out."""
    kept = Kept()

    class Law(dist.Distribution):
        arg_constraints: typing.ClassVar = {"a": kept}

        def __init__(self, a):
            self.a = a
            super().__init__(validate_args=True)

    jax.make_jaxpr(lambda a: Law(a).a)(1.0)
    Law(1.0)
    assert kept.known == [False, True]
    assert lapilli.ppl._validation.record().is_applied


def test_what_is_known_of_a_traced_law_is_checked():
    for law in (lambda mean: dist.Normal(mean, -1.0), lambda _: dist.Normal(0.0, -1.0)):
        with pytest.raises(ValueError, match="Normal distribution got invalid scale parameter"):
            jax.make_jaxpr(lambda mean, law=law: law(mean).mean)(0.0)
    with pytest.raises(RuntimeError, match="inside jitted code"):
        jax.make_jaxpr(lambda s: dist.Normal(0.0, s).validate_args(strict=True))(1.0)
