"""The wall around versions of jax, numpyro and arviz: one row a name says what it must do, and nothing goes round it."""

import ast
import importlib
import inspect
import sys
import typing
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jaxtyping import Float, Shaped
from numpyro import handlers
from numpyro.distributions import constraints, transforms

from lapilli.ppl import _compat as c

ROOT = Path(__file__).resolve().parents[2]
FILES = [ROOT / "__init__.py", *ROOT.glob("_*.py")]
FILES += [f for package in ("ppl", "inference", "models") for f in (ROOT / package).rglob("*.py")]
WALL = ROOT / "ppl" / "_compat.py"
ROWS = {}


def row(*names):
    def enter(fn):
        ROWS.update(dict.fromkeys(names, fn))
        return fn

    return enter


def equation(fn, *args):
    return jax.make_jaxpr(fn)(*args).jaxpr.eqns[0]


@row("ArrayLike")
def _():
    assert Float[c.ArrayLike, "n d"] and Shaped[c.ArrayLike, "*batch n"]


def test_every_signature_can_be_evaluated():
    """With each NumPy and jaxtyping; names that only a type checker reads are let through."""
    for package in ("inference", "models"):
        importlib.import_module(f"lapilli.{package}")
    ours = lambda found: {x for x in found if x.__module__.startswith("lapilli.")}
    modules = [m for name, m in sys.modules.items() if name.startswith("lapilli.")]
    classes = ours(x for m in modules for x in vars(m).values() if inspect.isclass(x))
    holders = [*modules, *classes]
    functions = ours(x for h in holders for x in vars(h).values() if inspect.isfunction(x))
    assert len(functions) > 2000 and len(classes) > 400
    wrong = []
    for found in [*functions, *classes]:
        try:
            typing.get_type_hints(found)
        except NameError:
            pass
        except Exception as err:
            wrong.append(f"{found.__module__}.{found.__qualname__}: {err}")
    assert not wrong, "\n".join(wrong)


@row("aval_of")
def _():
    (eqn,) = jax.make_jaxpr(lambda x: x + 1.0)(jnp.zeros((2, 3))).eqns
    assert [c.aval_of(v).shape for v in (*eqn.invars, *eqn.outvars)] == [(2, 3), (), (2, 3)]


# Laws and statements of NumPyro


@row("handler_stack", "no_handlers")
def _():
    outer, inner = handlers.seed(rng_seed=0), handlers.block()
    with outer, inner:
        assert c.handler_stack() == [outer, inner]
        with c.no_handlers():
            assert c.handler_stack() == []
        assert c.handler_stack() == [outer, inner]
    assert c.handler_stack() == []


@row("lazy_property")
def _():
    class Once:
        @c.lazy_property
        def x(self):
            return [3.0]

    assert vars(Once)["x"].wrapped(Once()) == [3.0]
    once = Once()
    assert once.x is once.x and vars(once) == {"x": [3.0]}


@row("numpyro_stack")
def _():
    with handlers.block() as _, handlers.seed(rng_seed=0):
        assert list(c.numpyro_stack()) == c.handler_stack() and len(c.handler_stack()) == 2


@row("apply_stack")
def _():
    class Answer(numpyro.primitives.Messenger):
        def process_message(self, msg):
            msg["value"] = 3.0

    message = {"type": "own", "name": "x", "fn": None, "args": (), "kwargs": {}, "value": None}
    with Answer():
        assert c.apply_stack(message)["value"] == 3.0


def _in_numpyro(fn):
    with handlers.trace() as trace, handlers.seed(rng_seed=0):
        result = fn()
    return result, trace


@row("declared")
def _():
    seen = []

    class Watch(numpyro.primitives.Messenger):
        def process_message(self, msg):
            if msg["type"] == "param":  # and not the key of its function
                seen.append(c.declared(msg))

    with handlers.seed(rng_seed=0), Watch():
        numpyro.param("a", 2.0)
        numpyro.param("b", lambda key: 3.0)
    assert seen == [(2.0,), ()]


@row("numpyro_scan")
def _():
    step = lambda carry, x: (carry + x, numpyro.sample("z", dist.Delta(carry)))
    (carry, ys), trace = _in_numpyro(lambda: c.numpyro_scan(step, 0.0, jnp.arange(3.0), 3))
    assert carry == 3.0 and ys.tolist() == [0.0, 0.0, 1.0] == trace["z"]["value"].tolist()


@row("numpyro_cond")
def _():
    branch = lambda a: lambda x: numpyro.sample("z", dist.Delta(a * x))
    result, trace = _in_numpyro(lambda: c.numpyro_cond(True, branch(2.0), branch(3.0), 5.0))
    assert result == 10.0 == trace["z"]["value"]


class TakeOver(numpyro.primitives.Messenger):
    def __init__(self, result):
        self.result, self.seen = result, []
        super().__init__(None)

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            self.seen.append(c.control_flow(msg))
            msg["value"] = c.control_flow_value(self.seen[-1], self.result)


@row("ControlFlow", "control_flow", "control_flow_value")
def _():
    from numpyro.contrib.control_flow import cond, scan

    step = lambda carry, x: (carry, x)
    with handlers.trace(), (taken := TakeOver((1.0, jnp.zeros(2)))):
        carry, ys = scan(step, 7.0, jnp.arange(2.0), length=2)
        scan(step, 7.0, jnp.arange(2.0), reverse=True)
    assert carry == 1.0 and ys.shape == (2,)
    one, backward = taken.seen
    assert one.is_scan and one.operand == 7.0 and one.length == 2 and one.xs.tolist() == [0.0, 1.0]
    assert one.step(1.0, 2.0) == (1.0, 2.0)
    assert not one.is_reversed and backward.is_reversed
    with handlers.trace(), (taken := TakeOver(4.0)):
        assert cond(True, lambda x: x, lambda x: -x, 5.0) == 4.0
    (found,) = taken.seen
    assert not found.is_scan and found.pred is True and found.operand == 5.0
    assert [f(1.0) for f in found.branches] == [1.0, -1.0]


@row("known_point")
def _():
    from numpyro.infer.hmc import hmc

    def potential(z):
        raise AssertionError("evaluated")

    point = c.known_point(jnp.ones(2), jnp.array(7.0), jnp.array([3.0, 4.0]))
    state = hmc(potential)[0](point, num_warmup=10, trajectory_length=None)
    assert state.potential_energy == 7.0 and state.z_grad.tolist() == [3.0, 4.0]


@row("mcmc_arguments")
def _():
    from numpyro.infer import MCMC, NUTS

    model = lambda y, scale: numpyro.sample(
        "y", dist.Normal(numpyro.sample("z", dist.Normal()), scale), obs=y
    )
    mcmc = MCMC(NUTS(model), num_warmup=1, num_samples=1, progress_bar=False)
    mcmc.run(jax.random.key(0), 1.0, scale=2.0)
    assert c.mcmc_arguments(mcmc) == ((1.0,), {"scale": 2.0})


@row("HurdleProbs")
def _():
    if hasattr(dist, "HurdlePoisson"):
        assert isinstance(dist.HurdlePoisson(0.5, rate=1.0), c.HurdleProbs)
    assert not isinstance(dist.Poisson(1.0), c.HurdleProbs)


@row("CatTransform")
def _():
    if hasattr(transforms, "CatTransform"):
        assert isinstance(transforms.CatTransform([transforms.ExpTransform()]), c.CatTransform)
    assert not isinstance(transforms.ExpTransform(), c.CatTransform)


@row("Mixture", "remixed")
def _():
    parts = [dist.Normal(0.0, 1.0), dist.Normal(3.0, 1.0)]
    same = dist.MixtureSameFamily(
        dist.Categorical(jnp.array([0.5, 0.5])), dist.Normal(jnp.array([0.0, 3.0]), 1.0)
    )
    for mixture in (same, dist.MixtureGeneral(same.mixing_distribution, parts)):
        assert isinstance(mixture, c.Mixture) and type(mixture).log_prob is c.Mixture.log_prob
        second = c.remixed(mixture, dist.Categorical(jnp.array([0.0, 1.0])))
        assert np.isclose(second.log_prob(0.3), parts[1].log_prob(0.3))
        assert mixture.mixing_distribution is same.mixing_distribution


@row("SingletonConstraint")
def _():
    assert isinstance(constraints.positive, c.SingletonConstraint)
    own = type("Own", (c.SingletonConstraint,), {"event_dim": 1})()
    assert own.event_dim == 1 and own == type(own)()


@row("define_prng_impl")
def _():
    """Random keys of another kind: what JAX asks of it, and that its numbers are what is drawn."""
    ones = lambda key, width, shape: jnp.full(shape, 2**width - 1, f"uint{width}")
    impl = c.define_prng_impl(
        key_shape=(1,),
        seed=lambda seed: jnp.array([7], jnp.uint32),
        split=lambda key, shape: jnp.broadcast_to(key, (*shape, 1)),
        random_bits=ones,
        fold_in=lambda key, data: key + 1,
        name="ones",
    )
    key = jax.random.key(0, impl=impl)
    assert jax.random.key_data(jax.random.fold_in(key, 3)).tolist() == [8]
    assert jax.random.key_data(jax.random.split(key, 2)).tolist() == [[7], [7]]
    assert jax.random.uniform(key, (2,)).min() > 0.999


@row("validate_sample")
def _():
    class Law(dist.Normal):
        @c.validate_sample
        def log_prob(self, value):
            return value

    assert Law(validate_args=True).log_prob(2.0) == 2.0
    outside = type("Positive", (Law,), {"support": constraints.positive})(validate_args=True)
    with pytest.warns(UserWarning, match="Out-of-support"):
        outside.log_prob(-1.0)


@row("asymmetric_laplace")
def _():
    by_quantile = dist.AsymmetricLaplaceQuantile(1.0, 2.0, 0.3)
    found = c.asymmetric_laplace(by_quantile)
    assert isinstance(found, dist.AsymmetricLaplace) and found.loc == 1.0
    assert c.asymmetric_laplace(found) is found


@row("mask_of")
def _():
    mask = jnp.array([True, False])
    assert c.mask_of(dist.Normal(jnp.zeros(2)).mask(mask)) is mask
    assert c.mask_of(dist.Normal().mask(False)) is False
    assert c.mask_of(dist.Normal()) is None


@row("matrix_to_tril_vec", "vec_to_tril_matrix")
def _():
    matrix = jnp.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [2.0, 3.0, 0.0]])
    np.testing.assert_array_equal(c.matrix_to_tril_vec(matrix, diagonal=-1), [1.0, 2.0, 3.0])
    np.testing.assert_array_equal(c.vec_to_tril_matrix(jnp.arange(1.0, 4.0), diagonal=-1), matrix)


@row("checked_again")
def _():
    for fn in (dist.Exponential(1.0), dist.Gamma(2.0, 1.0).expand([2]).to_event(1)):
        lost = jax.tree.unflatten(*reversed(jax.tree.flatten(fn)))
        outside = jnp.full(fn.event_shape, -1.0)
        assert lost.log_prob(outside) != -jnp.inf  # if NumPyro keeps its check, this row goes
        with pytest.warns(UserWarning, match="Out-of-support"):
            assert c.checked_again(lost).log_prob(outside) == -jnp.inf
        assert c.checked_again(fn) is fn
    levy = jax.tree.unflatten(*reversed(jax.tree.flatten(dist.Levy(0.0, 1.0))))
    assert jnp.isfinite(c.checked_again(levy).log_prob(2.0))
    loose = dist.Exponential(1.0, validate_args=False)
    assert c.checked_again(loose) is loose


@row("unchecked")
def _():
    law = dist.Exponential(1.0, validate_args=True)
    for fn in (law, dist.Exponential(jnp.ones(2), validate_args=True).to_event(1)):
        value = -jnp.ones(fn.event_shape)
        with pytest.warns(UserWarning, match="Out-of-support"):
            fn.log_prob(value)
        assert jnp.isfinite(c.unchecked(fn).log_prob(value))  # and the original keeps its check
    with pytest.warns(UserWarning, match="Out-of-support"):
        law.log_prob(-1.0)


@row("inverted")
def _():
    exp = transforms.ExpTransform()
    assert c.inverted(exp.inv) is exp and c.inverted(exp) is None
    assert exp.inv(jnp.exp(2.0)) == pytest.approx(2.0)  # through `_inverse`, which ours define


@row("torn_modules")
def _():
    infer = numpyro.infer
    del numpyro.infer  # as it is left where ArviZ loads numpyro lazily
    assert c._join_lazy_modules() == ["numpyro.infer"] and numpyro.infer is infer
    assert c._join_lazy_modules() == []


# Tracing


@row("Tracer", "is_concrete")
def _():
    seen = []
    jax.jit(lambda x: seen.append((isinstance(x, c.Tracer), c.is_concrete({"x": x}))))(1.0)
    assert seen == [(True, False)]
    assert c.is_concrete([1.0, jnp.ones(2), np.ones(2)])


@row("trace_state")
def _():
    seen = []
    jax.jit(lambda: seen.append(c.trace_state()))()
    assert c.trace_state() == c.trace_state() != seen[0]


@row("own_caches", "fresh_caches")
def _():
    runs = []

    @jax.jit
    def body(x):
        runs.append(1)
        return x

    def count(context):
        before = len(runs)
        with context:
            jax.make_jaxpr(lambda x: body(x))(1.0)
        return len(runs) - before

    body(1.0)
    assert [count(c.own_caches()), count(c.own_caches())] == [1, 0]
    assert [count(c.fresh_caches()), count(c.fresh_caches())] == [1, 1]


@row("own_trace")
def _():
    seen = []

    def inner(x, y):
        seen.append((c.own_trace(x), c.own_trace(y)))
        return x

    jax.vmap(lambda x: jax.vmap(lambda y: inner(x, y))(jnp.ones(3)))(jnp.ones(2))
    (x, y), = seen  # fmt: skip
    assert x is not None and y is not None and x is not y
    assert c.own_trace(1.0) is None


@row("typed_key")
def _():
    raw, typed = jax.random.PRNGKey(0), jax.random.key(0)
    assert c.typed_key(raw) == typed == c.typed_key(typed)
    with pytest.raises(TypeError, match="must be one PRNG key"):
        c.typed_key(jax.random.split(typed))


@row("is_counter_based")
def _():
    assert c.is_counter_based(jax.random.key(0, impl="threefry2x32").dtype)
    assert not c.is_counter_based(jax.random.key(0, impl="rbg").dtype)


# Equations


@row("ClosedJaxpr", "Jaxpr", "Var", "Literal", "jaxpr_as_fun")
def _():
    closed = jax.make_jaxpr(lambda x: x + 2.0)(1.0)
    assert isinstance(closed, c.ClosedJaxpr) and isinstance(closed.jaxpr, c.Jaxpr)
    variable, literal = closed.jaxpr.eqns[0].invars
    assert isinstance(variable, c.Var) and isinstance(literal, c.Literal) and literal.val == 2.0
    assert c.jaxpr_as_fun(c.ClosedJaxpr(closed.jaxpr, closed.consts))(1.0) == [3.0]


@row("Primitive", "set_batching")
def _():
    primitive = c.Primitive("of_a_test")
    primitive.def_impl(lambda x: x)
    primitive.def_abstract_eval(lambda x: x)
    seen = []
    rule = lambda args, dims: (seen.append(dims), (primitive.bind(*args), dims[0]))[1]
    c.set_batching(primitive, rule)
    assert jax.vmap(primitive.bind)(jnp.arange(2)).tolist() == [0, 1] and seen == [(0,)]
    assert equation(primitive.bind, 1.0).primitive is primitive


@row("ShapedArray")
def _():
    aval = c.ShapedArray((2, 3), jnp.float32)
    assert (
        equation(jnp.sin, jnp.zeros((2, 3), jnp.float32)).outvars[0].aval.update(weak_type=False)
        == aval
    )


@row("JITS", "CALLS")
def _():
    eqn = equation(jax.jit(lambda x: x + 1), 1.0)
    assert eqn.primitive.name in c.JITS <= set(c.CALLS)
    for wrap in (jax.jit, jax.checkpoint, _with_jvp, _with_vjp):
        eqn = equation(wrap(jnp.sin), 1.0)
        inner = eqn.params[c.CALLS[eqn.primitive.name]]
        assert isinstance(inner, c.Jaxpr | c.ClosedJaxpr)


def _with_jvp(fn):
    fn = jax.custom_jvp(fn)
    fn.defjvp(lambda primals, tangents: (fn(*primals), tangents[0]))
    return fn


def _with_vjp(fn):
    fn = jax.custom_vjp(fn)
    fn.defvjp(lambda x: (x, None), lambda _, g: (g,))
    return fn


@row("CUSTOM", "rule_file")
def _():
    for wrap in (_with_jvp, _with_vjp):
        eqn = equation(wrap(lambda x: x), 1.0)
        assert eqn.primitive.name in c.CUSTOM
        assert Path(c.rule_file(eqn)).name == Path(__file__).name
    by_terms = jax.custom_jvp(lambda x: x)
    by_terms.defjvps(lambda t, out, x: t)
    assert c.rule_file(equation(by_terms, 1.0)) is None  # JAX's file does not say whose rule it is
    assert c.rule_file(equation(jnp.sin, 1.0)) is None


@row("files_of")
def _():
    eqn = equation(lambda x: jnp.sin(x), 1.0)
    assert next(f for f in c.files_of(eqn) if f.startswith(str(Path(__file__).parent))) == __file__
    unknown = SimpleNamespace(source_info=SimpleNamespace(traceback=None))
    assert c.files_of(unknown) == []


@row("lines_of")
def _():
    def fn(x):
        return jnp.sin(x)

    line = inspect.getsourcelines(fn)[1] + 1
    assert next(at for at in c.lines_of(equation(fn, 1.0)) if at[0] == __file__) == (__file__, line)
    assert c.lines_of(SimpleNamespace(source_info=SimpleNamespace(traceback=None))) == []


@row("scan_counts")
def _():
    a, b = jnp.ones(2), jnp.ones(3)
    step = lambda carry, x: ((carry[1] + a.sum(), carry[2] + b.sum(), carry[0] + x), x)
    fn = lambda xs: jax.lax.scan(step, (0.0, 1.0, 2.0), xs)
    eqn = next(e for e in jax.make_jaxpr(fn)(jnp.ones(4)).jaxpr.eqns if e.primitive.name == "scan")
    num_consts, num_carry = c.scan_counts(eqn.params)
    assert num_carry == 3 and num_consts + num_carry + 1 == len(eqn.invars)
    # And the parameters that are read by name where loops are taken apart.
    assert eqn.params["length"] == 4 and {"jaxpr", "reverse", "unroll"} <= eqn.params.keys()


@row("while_counts")
def _():
    def fn(a, b, c):
        return jax.lax.while_loop(lambda x: x < a, lambda x: x + b * c, 0.0)

    eqn = equation(fn, 1.0, 2.0, 3.0)
    assert (
        c.while_counts(eqn.params) == (1, 2) and {"cond_jaxpr", "body_jaxpr"} <= eqn.params.keys()
    )


@row("bind")
def _():
    fns = [
        jnp.sin,
        jax.jit(jnp.cos),
        _with_jvp(jnp.exp),
        _with_vjp(jnp.exp),
        jax.checkpoint(jnp.cos),
    ]
    for fn in fns:
        assert np.allclose(c.bind(equation(fn, 0.5), [0.5]), [fn(0.5)])
    scan = lambda xs: jax.lax.scan(lambda a, x: (a + x, a), 0.0, xs)
    total, before = c.bind(equation(scan, jnp.ones(3)), [0.0, jnp.ones(3)])
    assert total == 3.0 and before.tolist() == [0.0, 1.0, 2.0]


@row("without_dead_code")
def _():
    jaxpr = jax.make_jaxpr(lambda x, y: (jnp.sin(x), jnp.cos(y))[0])(1.0, 2.0).jaxpr
    pruned, is_used = c.without_dead_code(jaxpr)
    assert [e.primitive.name for e in pruned.eqns] == ["sin"] and list(is_used) == [True, False]


@row("with_inputs")
def _():
    constant = jnp.arange(3.0)
    closed = jax.make_jaxpr(lambda x: constant * x)(2.0)
    jaxpr = closed.jaxpr
    moved = c.with_inputs(jaxpr, [], [*jaxpr.constvars, *jaxpr.invars])
    (out,) = c.jaxpr_as_fun(c.ClosedJaxpr(moved, []))(*closed.consts, 2.0)
    assert out.tolist() == [0.0, 2.0, 4.0]


@row("linear_call")
def _():
    twice = lambda x: c.linear_call(lambda _, t: 2 * t, lambda _, g: 5 * g, (), x)
    assert twice(1.0) == 2.0
    assert jax.linear_transpose(twice, 1.0)(1.0) == (5.0,)


@row("SymbolicZero")
def _():
    seen = []
    fn = jax.custom_jvp(lambda x, y: x * y)

    def rule(primals, tangents):
        seen.append([isinstance(t, c.SymbolicZero) for t in tangents])
        return fn(*primals), tangents[0] * primals[1]

    fn.defjvp(rule, symbolic_zeros=True)
    assert jax.jvp(lambda x: fn(x, 3.0), (2.0,), (1.0,)) == (6.0, 3.0)
    assert seen == [[False, True]]


def exported():
    """The public names of the wall: what it defines, and what it hands on as itself."""
    names = set()
    body = ast.parse(WALL.read_text()).body
    body += [node for block in body if isinstance(block, ast.If) for node in block.body]
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.Assign(targets=targets):
                names |= {t.id for t in targets if isinstance(t, ast.Name)}
            case ast.ImportFrom(names=aliases):
                names |= {a.name for a in aliases if a.asname == a.name}
    return {name for name in names if not name.startswith("_")}


def test_every_name_of_the_wall_has_a_row():
    assert exported() == set(ROWS)


@pytest.mark.slow_for("mcmc_arguments")
@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_name_of_the_wall_does_what_we_rely_on(name):
    ROWS[name]()


# What lies behind the wall. Modules: they and all below.
MODULES = (
    "jax._src", "jax.core", "jax.custom_derivatives", "jax.extend", "jax.interpreters", "jax.lib", "jaxlib", "numpyro.contrib",
    "numpyro.distributions.util", "numpyro.infer.util", "numpyro.infer.initialization", "numpyro.ops", "numpyro.util",
    "funsor", "arviz_stats", "numpy.typing", "np.typing",
)  # fmt: skip
# What is documented of a module whose other names are internal.
DOCUMENTED = {"numpyro.primitives": {"Messenger"}}
# Names of parameters of equations and keys of messages that have changed, or may.
TEXTS = {
    "num_consts", "num_carry", "ft_in", "cond_nconsts", "body_nconsts", "call_jaxpr", "jvp_jaxpr_fun", "bwd", "scan_wrapper",
}  # fmt: skip
CLASSES = {"HurdleProbs", "CatTransform"}  # absent from the oldest numpyro allowed
OURS_AND_PUBLIC = {
    "_replace",
    "_fields",
    "_asdict",
    "_make",
    "_getframe",
}  # of named tuples; of sys


def own_names(trees):
    """Private names that the library itself defines."""
    names = set()
    for node in (n for tree in trees for n in ast.walk(tree)):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                names.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
    return names


# Methods that we override or give to messages, so that the library defines them too.
FOREIGN = {
    "_inverse",
    "_inv",
    "_mask",
    "_validate_args",
    "_trace",
    "_impl",
    "_args",
    "_kwargs",
    "_PYRO_STACK",
}


def breaches(tree, own):
    """What in a file goes round the wall: (line, name)."""
    is_private = lambda name: name.startswith("_") and not name.startswith("__")
    is_ours = lambda name: name in OURS_AND_PUBLIC or (name in own and name not in FOREIGN)
    below = lambda name: any(name == m or name.startswith(m + ".") for m in MODULES)

    def wrong_import(module, name):
        documented = DOCUMENTED.get(module)
        return (
            below(module) or below(f"{module}.{name}") or is_private(name)
            or (documented is not None and name not in documented)
        )  # fmt: skip

    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                yield from ((node.lineno, a.name) for a in aliases if below(a.name))
            case ast.ImportFrom(level=0, module=module, names=aliases):
                found = (f"{module}.{a.name}" for a in aliases if wrong_import(module, a.name))
                yield from ((node.lineno, name) for name in found)
            case ast.Attribute(value=value, attr=name):
                whole = ast.unparse(node)
                module, _, last = whole.rpartition(".")
                is_self = ast.unparse(value) in ("self", "cls", "super()")
                if below(whole) or name in CLASSES:
                    yield node.lineno, whole
                elif module in DOCUMENTED and last not in DOCUMENTED[module]:
                    yield node.lineno, whole
                elif is_private(name) and not is_self and not is_ours(name):
                    yield node.lineno, whole
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr" | "setattr"),
                args=[_, ast.Constant(value=str(name)), *_],
            ):
                if is_private(name) and not is_ours(name):
                    yield node.lineno, name
            case ast.Constant(value=str(text)):
                if text in TEXTS or text.startswith(("jax._src", "numpyro._")):
                    yield node.lineno, text


@pytest.fixture(scope="module")
def trees():
    """The library's other files, parsed."""
    return {f: ast.parse(f.read_text()) for f in FILES if f != WALL}


@pytest.fixture(scope="module")
def own(trees):
    return own_names(trees.values())


# Read before JAX is imported, where the wall cannot stand yet; tests/test_compiler.py has its row.
BEFORE_JAX = ("_compiler.py", "jax._src.xla_bridge")


def test_no_other_file_uses_what_lies_behind_the_wall(trees, own):
    found = [
        f"{f.relative_to(ROOT)}:{line}: {name}"
        for f, t in trees.items()
        for line, name in breaches(t, own)
        if (f.name, name) != BEFORE_JAX
    ]
    assert len(trees) > 100
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "import jax.extend.core",
        "from jax.core import Tracer",
        "from jax import core",
        "from jax._src import api",
        "from jax.interpreters import batching",
        "from numpyro.primitives import apply_stack",
        "numpyro.primitives._PYRO_STACK",
        "numpyro.primitives.apply_stack(m)",
        "from numpyro.contrib.control_flow import scan",
        "import numpyro.contrib.control_flow",
        "jax.core.eval_jaxpr(x)",
        "fn._mask",
        "fn._validate_args = False",
        "getattr(fn, '_mask', None)",
        "t._inverse(x)",
        "constraints._SingletonConstraint",
        "discrete.HurdleProbs",
        "eqn.params['num_consts']",
        "sys.modules.get('jax._src.xla_bridge')",
        "import funsor",
        "from numpy.typing import ArrayLike",
        "np.typing.ArrayLike",
        "dtype._impl",
    ],
)
def test_a_way_round_the_wall_is_found(code, own):
    assert list(breaches(ast.parse(code), own))


@pytest.mark.parametrize(
    "code",
    [
        "self._mask",
        "point._replace(x=1)",
        "hasattr(point, '_fields')",
        "from numpyro.primitives import Messenger",
        "jax.jit(f)",
        "from ._x import _y",
    ],
)
def test_what_is_documented_or_ours_is_let_through(code):
    assert not list(breaches(ast.parse(code), set()))
