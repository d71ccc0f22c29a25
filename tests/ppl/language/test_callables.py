"""Whatever NumPyro takes for a model is a program, by every entry, under the name of the function inside of it."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.funsor import config_enumerate
from numpyro.infer.autoguide import AutoNormal

from lapilli import inference, ppl
from lapilli.inference.inputs import abstract_run
from lapilli.ppl.language import name_of

KEY = jax.random.key(0)
Y = jnp.array([0.3, -0.2, 1.0, 0.7])


def base(y=Y, scale=1.0):
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    with numpyro.plate("rows", 4):
        numpyro.sample("y", dist.Normal(mean, scale), obs=y)


@dataclasses.dataclass
class Settings:
    """Neither hashable nor without options of other kinds."""

    options: dict = dataclasses.field(default_factory=dict)

    def __call__(self, y=Y):
        return base(y)

    def method(self, y=Y):
        return base(y)

    @staticmethod
    def static(y=Y):
        return base(y)

    @classmethod
    def of_class(cls, y=Y):
        return base(y)


class Module(eqx.Module):
    loc: jax.Array

    def __call__(self, y=Y):
        return base(y + self.loc)


class Slotted:
    __slots__ = ("rows",)

    def __call__(self, y=Y):
        return base(y)


@functools.wraps(base)
def wrapped(*args, **kwargs):
    return base(*args, **kwargs)


MODULE = Module(jnp.zeros(()))
CALLABLES = {
    "function": (base, "base"),
    "partial": (functools.partial(base, Y), "base"),
    "partial_by_name": (functools.partial(base, scale=1.0), "base"),
    "partial_of_partial": (functools.partial(functools.partial(base), Y), "base"),
    "partial_of_handler": (functools.partial(handlers.mask(base, mask=True), Y), "base"),
    "partial_of_program": (functools.partial(ppl.model(base), Y), "base"),
    "handler_of_partial": (handlers.mask(functools.partial(base, Y), mask=True), "base"),
    "handler_of_program": (handlers.mask(ppl.model(base), mask=True), "base"),
    "config_enumerate": (config_enumerate(base), "base"),
    "method": (Settings().method, "method"),
    "static_method": (Settings.static, "static"),
    "class_method": (Settings.of_class, "of_class"),
    "object": (Settings(), "Settings"),
    "slotted_object": (Slotted(), "Slotted"),
    "equinox_module": (MODULE, "Module"),
    "equinox_partial": (eqx.Partial(base, Y), "Partial"),
    "jax_partial": (jax.tree_util.Partial(base, Y), "base"),
    "wrapped": (wrapped, "base"),
    "lambda": (lambda y=Y: base(y), "<lambda>"),
}
EXPECTED = ppl.model(base).log_density({"mean": 0.4})


@pytest.mark.parametrize("kind", CALLABLES)
def test_a_callable_is_the_program_of_the_function_inside(kind):
    fn, name = CALLABLES[kind]
    program = ppl.as_program(fn)
    assert name_of(program) == name and repr(program) == f"<Program {name}>"
    assert program.log_density({"mean": 0.4}) == EXPECTED
    assert ppl.condition(fn, {"mean": 0.4}).log_density({}) == EXPECTED
    assert repr(ppl.mask(fn, True)) == f"<Program {name}>"


def normal(*args, **kwargs):
    numpyro.sample("mean", dist.Normal(numpyro.param("loc", 0.2), 1.0))


def _value(fn):
    bound = inference.elbo(fn, functools.partial(normal))
    return bound.value(bound.init(KEY), KEY)


def _fitted(fn):
    return inference.fit(fn, num_steps=1, progress=False, k_hat="skip").history["value"]


ENTRIES = {
    "fit": _fitted,
    "elbo": _value,
    "eliminate": lambda fn: ppl.eliminate(fn, "mean").log_density({}),
    "normalize": lambda fn: ppl.normalize(fn, proposal=normal, num_particles=2).simulate(KEY).choices["mean"],
    "score": lambda fn: ppl.score(fn, {"mean": 0.4}).log_density,
    "smc": lambda fn: inference.smc(fn, KEY, num_particles=4).log_evidence,
    "tempered_smc": lambda fn: inference.tempered_smc(fn, KEY, num_particles=8).log_evidence,
    "to_arviz": lambda fn: inference.to_arviz({"mean": np.zeros(2)}, model=fn, key=KEY)["log_likelihood"]["y"].values,
    "predict": lambda fn: inference.predict(fn, {"mean": np.zeros(2)}, KEY)["y"],
}  # fmt: skip


@pytest.mark.slow_for("eliminate", "fit", "normalize", "predict", "smc", "tempered_smc", "to_arviz")
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_entry_takes_an_object_as_it_takes_its_function(entry):
    """An object without hash and name is what most checks for functions refuse; numbers agree to the bit."""
    call = ENTRIES[entry]
    np.testing.assert_array_equal(call(Settings()), call(base))


@pytest.mark.slow  # a compilation each
@pytest.mark.parametrize("kind", CALLABLES)
def test_fit_takes_every_callable(kind):
    np.testing.assert_allclose(_fitted(CALLABLES[kind][0]), _fitted(base), rtol=1e-6)


def yields(y=Y):
    yield base(y)


async def waits(y=Y):
    base(y)


REFUSED = {
    "class": (Settings, r"got the class Settings, .*Pass an object that has __call__, Settings\(\.\.\.\)"),
    "law": (dist.Normal(0.0, 1.0), "got a Normal, which is a law. Give it a name"),
    "cache": (functools.cache(base), "got base with a cache around it .*Pass the function without it"),
    "partial_of_cache": (functools.partial(functools.cache(base), None), "a cache around it"),
    "generator": (yields, "got yields, which is a generator: .*Make it a plain function"),
    "coroutine": (waits, "got waits, which is a coroutine"),
    "handler": (handlers.scale(scale=2.0), r"got the handler scale without a model. Put it around one"),
    "number": (3.0, "got float. Pass the function itself"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_runs_no_statements_is_refused(kind):
    fn, message = REFUSED[kind]
    with pytest.raises(TypeError, match=message):
        ppl.as_program(fn)


def test_arguments_that_the_function_inside_does_not_take_are_told():
    for fn in (handlers.mask(base, mask=True), Settings(), functools.partial(base, Y, 1.0)):
        with pytest.raises(TypeError, match="positional argument.*called with the same arguments"):
            ppl.as_program(fn).simulate(KEY, Y, 1.0, 2.0)


def test_a_type_error_of_the_function_itself_stays_as_it_is():
    def wrong(y=Y):
        base(len(3))  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="^object of type 'int' has no len"):
        ppl.as_program(handlers.mask(wrong, mask=True)).simulate(KEY)


def test_fit_refuses_what_is_no_model():
    with pytest.raises(
        TypeError, match=r"'objective' is a guide, AutoNormal.*Pass the model alone"
    ):
        inference.fit(AutoNormal(base))
    with pytest.raises(TypeError, match="'objective' must be an objective.*got NoneType"):
        inference.fit(None)


def test_a_value_that_a_handler_has_put_in_place_of_a_draw_is_no_draw():
    """NumPyro keeps such a site latent; its density is right, and a weight made of it would not be."""
    fixed = ppl.as_program(handlers.substitute(base, {"mean": jnp.asarray(0.4)}))
    trace = fixed.simulate(KEY)
    assert trace.choices["mean"] == 0.4 and trace.log_density == EXPECTED
    assert ppl.as_program(fixed).generate(KEY, {"mean": jnp.asarray(0.4)})[1] == EXPECTED
    for run in (
        lambda: fixed.generate(KEY, {}),
        lambda: inference.smc(fixed, KEY, num_particles=2),
    ):
        with pytest.raises(ValueError, match="'mean' got its value from a handler.*ppl.condition"):
            run()


RETURNED = {
    "text": "done",
    "plate": numpyro.plate("cells", 3),
    "function": base,
    "law": dist.Normal(0.0, 1.0),
}


@pytest.mark.parametrize("kind", RETURNED)
def test_a_program_may_return_anything(kind):
    """What is no array passes through no transformation; what a program returns besides does."""
    program = ppl.as_program(lambda y: (base(y), {"what": RETURNED[kind], "two": 2.0 * y})[1])
    assert program.simulate(KEY, Y).retval["what"] is RETURNED[kind]
    jitted = jax.jit(program.simulate)(KEY, Y)
    np.testing.assert_allclose(jitted.retval["two"], 2.0 * Y)
    assert (jitted.retval["what"] is None) == (kind != "law")
    run = abstract_run(program, (Y,))
    assert set(run.trace.choices) == {"mean"}
