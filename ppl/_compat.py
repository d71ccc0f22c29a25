"""The wall: each name of jax, numpyro, funsor and arviz that is private or has changed between versions, in one place.

Other files of the library reach such a name through this one only. tests/ppl/test_compat.py has one row a name, which says what
it must do, and fails when another file goes round the wall. Names that the packages document and keep are used where needed.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpyro
from jax.core import ShapedArray as ShapedArray, Tracer as Tracer
from jax.custom_derivatives import SymbolicZero as SymbolicZero, linear_call as linear_call
from jax.extend.core import (
    ClosedJaxpr as ClosedJaxpr,
    Jaxpr as Jaxpr,
    JaxprEqn,
    Literal as Literal,
    Primitive as Primitive,
    Var as Var,
    get_opaque_trace_state,
    jaxpr_as_fun as jaxpr_as_fun,
)
from jax.extend.random import define_prng_impl as define_prng_impl
from jax.interpreters import batching, partial_eval
from jaxtyping import Array, PyTree

from ._handler_stack import HandlerStack, give_each_thread_its_own
from ._types import Key, Message

# An equation of a jaxpr, and what it reads: a variable or a constant.
type Equation = JaxprEqn
type Atom = Var | Literal

if TYPE_CHECKING:
    from numpy.typing import ArrayLike as ArrayLike
else:
    ArrayLike = Any  # what jaxtyping can subscript: of NumPy 2.5 on, the alias is no class


def aval_of(atom: Atom) -> ShapedArray:
    """Shape and type of what an atom stands for."""
    return cast(ShapedArray, atom.aval)


def _join_lazy_modules() -> list[str]:
    """Join modules of numpyro that were torn from their parents; returns their names.

    ArviZ registers numpyro as a lazy module; importing one of its submodules first loads that submodule twice and leaves it off
    its parent. Touching the package loads it whole; what was torn apart before is put together again.
    """
    numpyro.__version__  # noqa: B018
    torn = []
    for name, module in list(sys.modules.items()):
        parent, _, child = name.rpartition(".")
        if parent.split(".")[0] == "numpyro" and not hasattr(sys.modules[parent], child):
            setattr(sys.modules[parent], child, module)
            torn.append(name)
    return torn


torn_modules = _join_lazy_modules()


_numpyro: Any = numpyro
_primitives, _dist = _numpyro.primitives, _numpyro.distributions
_runs = itertools.count()
_user_context = jax.make_user_context(None)
give_each_thread_its_own(_primitives._PYRO_STACK)


# NumPyro: statements and handlers

apply_stack: Callable[[dict[str, PyTree]], dict[str, PyTree]] = _primitives.apply_stack
lazy_property: Any = _dist.util.lazy_property  # what a law computes at the first question and keeps


def handler_stack() -> list[Any]:
    """The calling thread's live stack of effect handlers, outermost first."""
    stack = numpyro_stack()
    return stack.data if isinstance(stack, HandlerStack) else stack


def numpyro_stack() -> HandlerStack:
    """What NumPyro keeps the stacks of all threads in."""
    return _primitives._PYRO_STACK


@contextlib.contextmanager
def no_handlers() -> Iterator[None]:
    """A context in which no effect handler is active: code inside runs as if called at top level."""
    stack = handler_stack()
    saved = stack[:]
    stack.clear()
    try:
        yield
    finally:
        stack[:] = saved


def declared(msg: Message) -> tuple[PyTree, ...]:
    """The value that a param statement gives, in a tuple; () where it gives a function of a key, or nothing."""
    return tuple(x for x in msg["args"] if x is not None and not callable(x))


def numpyro_scan(
    step: Callable[..., PyTree], init: ArrayLike, xs: PyTree, length: int
) -> tuple[Array, Array]:
    """The scan of numpyro.contrib: (carry, ys)."""
    from numpyro.contrib.control_flow import scan  # late: see _join_lazy_modules

    return scan(step, init, xs, length=length)


def numpyro_cond(pred: Any, true_fn: Any, false_fn: Any, operand: PyTree) -> Any:
    """The cond of numpyro.contrib."""
    from numpyro.contrib.control_flow import cond

    return cond(pred, true_fn, false_fn, operand)


class ControlFlow(NamedTuple):
    """A control-flow statement of numpyro.contrib; what the other kind alone has is left out."""

    is_scan: bool
    operand: PyTree  # of a scan: the first carry
    step: Any = None
    xs: PyTree = None
    length: Any = None
    is_reversed: bool = False
    pred: Any = None
    branches: tuple[Any, ...] = ()


def control_flow(msg: Message) -> ControlFlow:
    """What a message of type "control_flow" holds."""
    if msg["fn"].__name__ == "scan_wrapper":
        step, init, xs, length, reverse = msg["args"]
        return ControlFlow(True, init, step, xs, length, reverse)
    pred, true_fn, false_fn, operand = msg["args"]
    return ControlFlow(False, operand, pred=pred, branches=(true_fn, false_fn))


def control_flow_value(statement: ControlFlow, result: PyTree) -> PyTree:
    """The value that NumPyro expects of such a statement whose sites are recorded already; `result` is (carry, ys) of a scan."""
    from numpyro.ops.pytree import PytreeTrace

    nothing = PytreeTrace({})
    if not statement.is_scan:
        return result, nothing
    carry, ys = result
    return (statement.length, None, carry), (nothing, ys)


def known_point(z: Array, potential: Array, gradient: Array) -> PyTree:
    """A point of which NumPyro's `hmc` is to believe that potential and gradient are these, and evaluates neither."""
    from numpyro.infer.util import ParamInfo

    return ParamInfo(z, potential, gradient)


def mcmc_arguments(mcmc: Any) -> tuple[PyTree, dict[str, PyTree]]:
    """What the last `mcmc.run` was called with, after its key: (args, kwargs)."""
    return mcmc._args, mcmc._kwargs


# NumPyro: laws, supports, transforms


class _Absent:
    """In place of a class that this version does not have yet: nothing is an instance of it."""


# From numpyro 0.22 on.
HurdleProbs: Any = getattr(_dist.discrete, "HurdleProbs", _Absent)
CatTransform: Any = getattr(_dist.transforms, "CatTransform", _Absent)
Mixture: Any = _dist.mixtures._MixtureBase
SingletonConstraint: Any = _dist.constraints._SingletonConstraint
validate_sample: Callable[..., PyTree] = _dist.util.validate_sample
# The numbers below a diagonal, as a vector, row by row.
matrix_to_tril_vec: Callable[..., Array] = _dist.util.matrix_to_tril_vec
vec_to_tril_matrix: Callable[..., Array] = _dist.util.vec_to_tril_matrix


def asymmetric_laplace(fn: Callable[..., PyTree]) -> Any:
    """The asymmetric Laplace law that one given by a quantile is; any other law as it is."""
    return getattr(fn, "_ald", fn)


def mask_of(fn: PyTree) -> ArrayLike | None:
    """The mask of a MaskedDistribution; None of another law."""
    return fn._mask if isinstance(fn, _dist.MaskedDistribution) else None


def unchecked(fn: PyTree) -> PyTree:
    """`fn` without NumPyro's check that a value lies in its support."""
    fn = copy.copy(fn)
    fn._validate_args = False
    if hasattr(fn, "base_dist"):
        fn.base_dist = unchecked(fn.base_dist)
    return fn


def checked_again(fn: PyTree) -> PyTree:
    """`fn` with NumPyro's check that a value lies in its support, which a law loses on its way through a pytree.

    There the setting becomes None, which is neither the user's True nor False: an observation outside of a law's support, whose
    bounds may be what is to be learned, would have a density.
    """
    base = getattr(fn, "base_dist", None)
    new = None if base is None else checked_again(base)
    if fn._validate_args is not None and new is base:
        return fn
    fn = copy.copy(fn)
    if fn._validate_args is None and fn.support is not None:  # Levy's is lost as well
        fn._validate_args = type(fn)._validate_args
    if new is not None:
        fn.base_dist = new
    return fn


def inverted(transform: Any) -> Any:
    """The transform of which this one is the inverse; None where it was not made by inversion."""
    return transform._inv if isinstance(transform, _dist.transforms._InverseTransform) else None


# JAX: tracing


def trace_state() -> PyTree:
    """A value that changes whenever JAX enters or leaves a transformation."""
    return get_opaque_trace_state(convention="nnx")


def own_caches() -> contextlib.AbstractContextManager[None]:
    """A context for a run, in which JAX shares no traced inner functions (jit, scan, while bodies) with code outside of it.

    A body that was traced earlier is served from JAX's cache: its Python code does not run and its statements go unseen. Inside
    this context a body with a statement is never cached, because meeting the statement there is an error.

    However the run ends, no handler that it has entered stays on the stack.
    """
    return _run_of_its_own("lapilli")


def fresh_caches() -> contextlib.AbstractContextManager[None]:
    """`own_caches` for one run alone: needed where a handler hides statements, which would then be cached unseen."""
    return _run_of_its_own(("lapilli", next(_runs)))


@contextlib.contextmanager
def _run_of_its_own(name: str | tuple[str, int]) -> Iterator[None]:
    stack = handler_stack()
    depth = len(stack)
    with _user_context(name):
        try:
            yield
        finally:
            # An interrupt may hit a handler while it is entered or left, which then stays.
            del stack[depth:]


def is_concrete(tree: PyTree) -> bool:
    """Whether the values of all leaves are known."""
    return not any(isinstance(x, Tracer) for x in jax.tree.leaves(tree))


def remixed(mixture: Any, mixing: Any) -> Any:
    """A copy of a mixture with another law of its component."""
    other = copy.copy(mixture)
    other._mixing_distribution = mixing
    return other


def own_trace(x: Key) -> PyTree:
    """What tells the innermost transformation that a value varies with; None where nothing does."""
    return x._trace if isinstance(x, Tracer) else None  # pyright: ignore[reportAttributeAccessIssue]


def typed_key(key: PyTree) -> jax.Array:
    """Accept both kinds of PRNG key and return a typed one.

    Raises:
        TypeError: if `key` is neither `jax.random.key(...)` nor a raw uint32 key of shape (2,).
    """
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if key.shape == ():
            return key
    elif dtype == jnp.uint32 and key.shape == (2,):
        return jax.random.wrap_key_data(key)
    got = f"{type(key).__name__} with dtype {dtype} and shape {getattr(key, 'shape', None)}"
    raise TypeError(
        f"Argument 'key' must be one PRNG key, jax.random.key(seed) or jax.random.PRNGKey(seed); got {got}."
    )


def is_counter_based(dtype: Any) -> bool:
    """Whether the generator of keys of this type draws the same for one key and for the same key in a batch."""
    return dtype._impl.name == "threefry2x32"


# JAX: equations

JITS = frozenset("jit pjit".split())
# Calls of one inner program: name -> the parameter that holds it.
CALLS = {
    **dict.fromkeys([*JITS, *"remat remat2 checkpoint".split()], "jaxpr"),
    **dict.fromkeys(
        "closed_call core_call custom_jvp_call custom_vjp_call eval_jaxpr".split(), "call_jaxpr"
    ),
}
# Operations with derivatives of their own.
CUSTOM = frozenset("custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr".split())


def scan_counts(params: dict[str, PyTree]) -> tuple[int, int]:
    """(number of constants, number of carries) of a scan equation, for every supported jax."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def while_counts(params: dict[str, PyTree]) -> tuple[int, int]:
    """(number of constants of the condition, of the body) of a while equation."""
    return params["cond_nconsts"], params["body_nconsts"]


def rule_file(eqn: Equation) -> str | None:
    """The file in which the rule of a `CUSTOM` operation was written; None where that cannot be told."""
    rule = eqn.params.get("jvp_jaxpr_fun") or eqn.params.get("bwd")
    file = getattr(getattr(rule, "debug_info", None), "func_filename", None)
    # Rules given term by term (defjvps) all seem to stand in this file, whoever wrote them.
    return None if os.path.basename(file or "") == "custom_derivatives.py" else file


def files_of(eqn: Equation) -> list[str]:
    """The files of the calls in which an equation was made, innermost first; [] where that is not known."""
    found = eqn.source_info.traceback
    return [] if found is None else [frame.file_name for frame in found.frames]


def lines_of(eqn: Equation) -> list[tuple[str, int]]:
    """File and line of the calls in which an equation was made, innermost first; [] where that is not known."""
    found = eqn.source_info.traceback
    return [] if found is None else [(f.file_name, f.line_num) for f in found.frames]


def bind(eqn: PyTree, args: list[PyTree]) -> list[PyTree]:
    """Run one jaxpr equation on `args`, under the names that it was traced under."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    subfuns, params = bound if isinstance(bound, tuple) else ((), bound)
    names = str(eqn.source_info.name_stack)
    with jax.named_scope(names) if names else contextlib.nullcontext():
        outs = eqn.primitive.bind(*subfuns, *args, **params)
    return outs if eqn.primitive.multiple_results else [outs]


def set_batching(primitive: Primitive, rule: Callable[..., PyTree]) -> None:
    """Give a primitive its rule under `jax.vmap`: rule(args, dims, **params) -> (results, dims)."""
    batching.primitive_batchers[primitive] = rule


def without_dead_code(jaxpr: Jaxpr) -> tuple[Jaxpr, list[bool]]:
    """A jaxpr without the equations that no output needs, and which of its inputs it still takes."""
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))


def with_inputs(jaxpr: Jaxpr, constvars: Sequence[Var], invars: Sequence[Var]) -> Jaxpr:
    """A jaxpr with its variables given otherwise; the names of its arguments, which no longer fit, are dropped."""
    names = jaxpr.debug_info._replace(arg_names=None)
    return jaxpr.replace(constvars=list(constvars), invars=list(invars), debug_info=names)
