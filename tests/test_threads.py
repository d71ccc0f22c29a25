"""Calls from several threads give the numbers of one, and whatever ends a call, it leaves no handler behind."""

import functools
import pathlib
import random
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from _mixed_calls import X, arrays, calls, line
from numpyro import handlers
from numpyro.infer import Predictive
from numpyro.infer.autoguide import AutoNormal

from lapilli import inference, ppl
from lapilli.inference.posteriors._clock import Clock
from lapilli.inference.posteriors.weighted import _weighted
from lapilli.ppl._compat import handler_stack
from lapilli.ppl._handler_stack import HandlerStack, give_each_thread_its_own
from lapilli.ppl._quiet import quiet


@pytest.fixture
def restless():
    """Python changes threads at any step."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture(scope="module")
def mixed():
    return calls()


def in_thread(fn):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(fn).result()


# What costs little once it is compiled, or nothing to compile.
CHEAP = ("simulate", "log_density", "value_and_grad", "expectation", "numpyro")


@pytest.mark.usefixtures("restless")
def test_two_threads_give_the_numbers_of_one(mixed):
    work = [(name, number) for number in range(3) for name in CHEAP]
    alone = [arrays(mixed[name](number)) for name, number in work]
    with ThreadPoolExecutor(2) as pool:
        both = pool.map(lambda call: arrays(mixed[call[0]](call[1])), work)
        for expected, found in zip(alone, both, strict=True):
            jax.tree.map(np.testing.assert_array_equal, expected, found)
    assert not handler_stack()


def test_one_stack_for_all_threads_is_found_to_mix_sites(monkeypatch):
    """What the tests here look for: NumPyro's own stack, with a thread in the middle of another's run."""
    shared = []
    monkeypatch.setattr(numpyro.primitives, "_PYRO_STACK", shared)
    assert _sites_while_another_thread_draws() == ["mine", "theirs"]


def test_a_thread_draws_in_the_midst_of_a_run_of_another():
    assert _sites_while_another_thread_draws() == ["mine"]


def _sites_while_another_thread_draws():
    def program():
        in_thread(lambda: numpyro.sample("theirs", dist.Delta(0.0), rng_key=jax.random.key(0)))
        ppl.sample("mine", dist.Normal(0.0, 1.0))

    return sorted(ppl.model(program).simulate(jax.random.key(0)).choices)


def test_handlers_open_around_the_import_stay():
    before = [handlers.block()]
    own = give_each_thread_its_own(before)
    assert isinstance(own, HandlerStack) and list(own) == before
    assert in_thread(lambda: list(own)) == []
    assert give_each_thread_its_own(own) is own


def test_the_stack_does_what_a_list_does():
    stack = HandlerStack()
    stack.extend("abc")
    stack.append(stack.pop())
    stack[:1] = []
    assert stack == ["b", "c"] and stack[-1] == "c" and stack[0:] == ["b", "c"]
    assert list(reversed(stack)) == ["c", "b"] and stack.index("c") == 1 and "b" in stack
    stack.clear()
    assert not stack and len(stack) == 0


# What ends a call.


def _ways(make):
    """Kind of call -> a call that ends where `make()` is called, in the midst of the program."""

    @ppl.model
    def program(y=None):
        ppl.param("p", 0.0)
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(z, 1.0), obs=y)
        make()

    @ppl.model
    def guide(y=None):
        ppl.sample("z", dist.Normal(ppl.param("loc", 0.0), 1.0))

    @ppl.model
    def chain(y):
        def step(z, y):
            z = ppl.sample("z", dist.Normal(z, 1.0))
            make()
            ppl.sample("y", dist.Normal(z, 1.0), obs=y)
            return z, None

        ppl.scan(step, 0.0, y)

    def cost(p):
        z = ppl.sample("z", dist.Normal(p, 1.0))
        make()
        return z

    key, bound = jax.random.key(0), inference.elbo(program, guide)
    fit = lambda objective: inference.fit(
        objective, optax.adam(0.1), (0.5,), num_steps=2, progress=False
    )
    return {
        "simulate": lambda: program.simulate(key),
        "generate": lambda: program.generate(key, {"z": 0.0}),
        "log_density": lambda: program.log_density({"z": 0.0}, 0.5),
        "init": lambda: program.init(key, 0.5),
        "condition": lambda: ppl.condition(program, {"z": 0.0}).simulate(key),
        "expectation": lambda: ppl.expectation(cost).grad(0.0, key),
        "objective": lambda: bound.value_and_grad({"p": 0.0, "loc": 0.0}, key, 0.5),
        "fit": lambda: fit(bound),
        "fit an autoguide": lambda: fit(inference.elbo(program, AutoNormal(program))),
        "smc": lambda: inference.smc(chain, key, np.zeros(3), num_particles=4),
        "eliminate": lambda: ppl.eliminate(chain, "z").posterior(key, {}, np.zeros(3)),
        "marginal": lambda: ppl.marginal(program, keep=["y"]).simulate(key),
        "NumPyro": lambda: Predictive(program, num_samples=2)(key),
    }


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, LookupError, ValueError])
def test_no_handler_stays_after_an_exception(error):
    def fail():
        raise error("in the midst")

    for name, call in _ways(fail).items():
        with pytest.raises(error):
            call()
        assert not handler_stack(), name


def test_a_plate_that_a_generator_keeps_open_is_refused():
    kept = []

    def rows():
        with ppl.plate("rows", 2):
            yield

    def enter():
        kept.append(rows())
        next(kept[-1])

    for name in ("simulate", "log_density", "init"):
        with pytest.raises(RuntimeError, match=r"still open: \['rows'\].*Use them in a with"):
            _ways(enter)[name]()
        assert not handler_stack(), name
    with handlers.block() as _:
        kept.clear()  # they end now, and take no handler of others along
        assert len(handler_stack()) == 1


# Checks, which are made once for all threads.


def test_data_that_jump_are_refused_also_while_another_thread_makes_the_check():
    others, keys = [], list(jax.random.split(jax.random.key(0)))

    def cost(p, size):
        z = ppl.sample("z", dist.Normal(p, 1.0))
        if not others:  # the first trace: another thread calls, before there is a check
            others.append(pool.submit(expectation.value, 0.0, keys[1], np.float32(1.0)))
            time.sleep(0.2)
        return size * (z > 0)

    expectation = ppl.expectation(cost)
    with ThreadPoolExecutor(1) as pool:
        assert expectation.value(0.0, keys[0], np.float32(0.0)) == 0.0
        with pytest.raises(ValueError, match="jumps by"):
            others[0].result()


def test_an_autoguide_is_set_up_once():
    seen, drawn = [], []

    def place(site):
        if site["type"] == "sample" and not site["is_observed"]:
            drawn.append(site["name"])
            time.sleep(0.05)
            return jnp.asarray(0.1 * len(drawn))
        return None

    place = functools.partial(place)  # NumPyro's way to tell a function of a site
    objective = inference.elbo(line, AutoNormal(line, init_loc_fn=place))
    with ThreadPoolExecutor(2) as pool:
        seen = list(pool.map(lambda s: objective.init(jax.random.key(s), X, X), range(2)))
    jax.tree.map(np.testing.assert_array_equal, *seen)
    alone = inference.elbo(line, AutoNormal(line, init_loc_fn=place))
    num_met = len(drawn)
    alone.init(jax.random.key(0), X, X)
    assert len(drawn) == 2 * num_met


# Warnings.


def test_warnings_are_kept_back_in_one_thread_only():
    before = list(warnings.filters)
    with quiet("Out-of"):
        warnings.warn("Out-of-support values", UserWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="another"):  # warnings are errors in tests
            warnings.warn("another", UserWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="Out-of-support"):
            in_thread(lambda: warnings.warn("Out-of-support", UserWarning, stacklevel=1))
    assert warnings.filters == before


def test_threads_that_overlap_leave_the_filters_as_they_were():
    before, entered, left = list(warnings.filters), threading.Event(), threading.Event()

    def longer():
        with quiet():
            entered.set()
            left.wait(10)
            warnings.warn("kept back", UserWarning, stacklevel=1)

    with ThreadPoolExecutor(1) as pool:
        with quiet():
            other = pool.submit(longer)
            entered.wait(10)
        left.set()
        other.result()
    assert warnings.filters == before


def test_a_list_of_filters_that_comes_back_keeps_nothing_back():
    with warnings.catch_warnings():
        with quiet():
            warnings.filters[:] = list(warnings.filters)
            old = list(warnings.filters)
        warnings.filters[:] = old
        with pytest.raises(UserWarning, match="loud"):
            warnings.warn("loud", UserWarning, stacklevel=1)


@pytest.mark.parametrize(("way", "engine"), [("run_fit", "fit"), ("run_tempered", "tempered_smc")])
def test_what_infer_tries_keeps_no_warning_of_another_thread_back(way, engine, monkeypatch):
    def warns(*args, **kwargs):
        warnings.warn("mine", UserWarning, stacklevel=1)
        in_thread(lambda: warnings.warn("theirs", UserWarning, stacklevel=1))
        raise ValueError("no")

    monkeypatch.setattr(_weighted, engine, warns)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        found = getattr(_weighted, way)(ppl.model(line), (X,), jax.random.key(0), 10, Clock(None))
    assert [str(w.message) for w in heard] == ["theirs"]
    assert found.choices is None


def test_filters_for_all_threads_are_put_in_place_by_nothing():
    """`warnings.catch_warnings` is for all threads; `quiet` for its own."""
    root = pathlib.Path(ppl.__file__).parents[1]
    files = [f for name in ("ppl", "inference", "models") for f in (root / name).rglob("*.py")]
    users = [f.name for f in files if "catch_warnings()" in f.read_text()]
    assert users == ["_quiet.py"]


# All kinds of calls.


@pytest.mark.slow  # each of most calls is traced and compiled anew
@pytest.mark.usefixtures("restless")
def test_a_thousand_mixed_calls_from_eight_threads(mixed):
    weights = [20 if name in CHEAP else 2 for name in mixed]
    work = [(name, number) for name in mixed for number in range(2)]  # all of them, and then
    work += [
        (name, random.Random(n).randrange(20 if name in CHEAP else 3))
        for n, name in enumerate(random.Random(0).choices([*mixed], weights, k=1000 - len(work)))
    ]
    alone = {call: arrays(mixed[call[0]](call[1])) for call in dict.fromkeys(work)}

    def run(call):
        return arrays(mixed[call[0]](call[1])), len(handler_stack())

    random.Random(1).shuffle(work)
    with ThreadPoolExecutor(8) as pool:
        for call, (found, num_left) in zip(work, pool.map(run, work), strict=True):
            for ours, expected in zip(found, alone[call], strict=True):
                np.testing.assert_array_equal(ours, expected, err_msg=str(call))
            assert num_left == 0


_COLD = """
import sys; sys.path.insert(0, sys.argv[1]); sys.setswitchinterval(1e-6)
from concurrent.futures import ThreadPoolExecutor
def first(n):
    import jax
    from lapilli import inference, ppl, workarounds
    from _mixed_calls import arrays, calls
    made = calls()
    return [arrays(made[name](n % 2)) for name in ("simulate", "posterior", "smc", "to_arviz")]
with ThreadPoolExecutor(8) as pool:
    found = list(pool.map(first, range(8)))
import numpy as np
for n, other in enumerate(found):
    for a, b in zip(sum(found[n % 2], []), sum(other, []), strict=True):
        np.testing.assert_array_equal(a, b)
"""


@pytest.mark.slow  # imports and compiles in a process of its own
def test_the_first_calls_of_a_process_may_come_from_eight_threads(tmp_path, request):
    helpers = request.config.rootpath / "tests" / "_helpers"
    code = [sys.executable, "-W", "error", "-c", _COLD, str(helpers)]
    subprocess.run(code, cwd=tmp_path, check=True)
