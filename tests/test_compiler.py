"""XLA's compiler has two wrong rewrites; importing lapilli first keeps them out."""

import os
import subprocess
import sys

import pytest

from lapilli import _compiler

SUMS = """
import jax, jax.numpy as jnp
f = jax.jit(lambda x: (jnp.arange(x.shape[1], dtype=x.dtype) * x).sum(1))
keep = [f(jnp.ones((20_000, k))) for k in (2, 3, 8, 15)]
g = jax.jit(lambda x: (x @ jnp.ones((x.shape[1], 4))).sum(1))
print([float(y[0]) for y in keep], float(g(jnp.ones((20_000, 2)))[0]))
"""
# Functions of a constant table, transposed, mapped over any axis, behind others, against those of the table as an argument.
TURNED = """
import itertools, jax, jax.numpy as jnp, numpy as np
from jax import lax
from jax.scipy import special
NAMES = {
    "lgamma": lax.lgamma, "digamma": lax.digamma, "igamma": lambda x: lax.igamma(x, x + 0.5),
    "zeta": lambda x: special.zeta(x + 1, x), "betainc": lambda x: special.betainc(x, 2.0, 0.3),
    "ndtri": lambda x: special.ndtri(x / 20), "i1e": lax.bessel_i1e,
}
BETWEEN = [lambda x: x, lambda x: jnp.where(x >= 8, 1.0, x), lambda x: x[..., ::-1], lambda x: jnp.sort(x, -1)]
wrong = 0
for (name, fn), before, turn, axis in itertools.product(NAMES.items(), BETWEEN, (0, 1), (0, 1)):
    table = np.random.default_rng(len(name)).uniform(0.5, 9, (3, 4)).astype(np.float32)
    columns = jax.vmap(lambda x: fn(before(x)), in_axes=axis)
    turned = lambda x: columns(x.T if turn else x)
    wrong += not np.allclose(jax.jit(lambda: turned(jnp.asarray(table)))(), jax.jit(turned)(table), 1e-4, 1e-4)
print(wrong)
"""


def run(code, root, flags=None):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    if flags is not None:
        environment["XLA_FLAGS"] = flags
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
    )


@pytest.mark.slow
def test_sums_are_right_after_import(tmp_path):
    out = run("import lapilli" + SUMS, tmp_path).stdout
    assert out.split("]")[0] == "[1.0, 3.0, 28.0, 105.0" and out.split()[-1] == "8.0"


def test_flags_of_the_user_are_kept(tmp_path):
    code = "import lapilli, os; print(os.environ['XLA_FLAGS'])"
    out = run(code, tmp_path, "--xla_force_host_platform_device_count=2").stdout
    assert out.startswith("--xla_force_host_platform_device_count=2 --xla_cpu")
    mine = "--xla_cpu_experimental_ynn_fusion_type=-reduce"
    others = ["=".join(fault.flag) for fault in _compiler.FAULTS[1:] if fault.is_in_release]
    assert run(code, tmp_path, mine).stdout.split() == [mine, *others]


def test_a_child_that_inherits_the_flags_does_not_start_jax_at_import(tmp_path):
    """Else `jax.distributed.initialize` and the number of devices came too late there."""
    inherited = " ".join("=".join(fault.flag) for fault in _compiler.FAULTS if fault.is_in_release)
    code = "from lapilli import _compiler, ppl; print(_compiler._may_have_started())"
    assert run(code, tmp_path, inherited).stdout.strip() == "False"


@pytest.mark.fast("-False")
@pytest.mark.parametrize(
    ("first", "started"),
    [("", False), ("import jax; ", False), ("import jax; jax.devices(); ", True)],
)
def test_whether_jax_has_started_is_told_at_import(tmp_path, first, started):
    # Without it the first call of every process would compile a sum.
    code = f"{first}import lapilli; print(lapilli._compiler._may_have_started())"
    assert run(code, tmp_path).stdout.strip() == str(started)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "warned"),
    [
        ("", False),
        ("import jax, lapilli\n", False),
        ("import jax; jax.devices(); import lapilli\n", True),
    ],
)
def test_a_backend_that_started_first_is_warned_of(first, warned, tmp_path):
    """When the language is imported, whatever is computed then."""
    said = run(f"{first}from lapilli import ppl", tmp_path).stderr
    for fault in _compiler.FAULTS:
        is_faulty = not fault.is_right(fault.faulty)
        assert (fault.what in said) == (warned and is_faulty)
    assert ("Import lapilli first" in said) == (
        _compiler.FAULTS[0].what in said or _compiler.FAULTS[1].what in said
    )


@pytest.mark.slow
@pytest.mark.parametrize("fault", _compiler.FAULTS, ids=lambda fault: fault.name)
def test_flags_are_set_in_releases_with_the_fault_and_in_no_others(fault, tmp_path):
    # Runs in every cell of the matrix: the ranges of releases in _compiler.py are what these cells find.
    number = _compiler.FAULTS.index(fault)
    is_right = f"print(lapilli._compiler.FAULTS[{number}].is_right"
    assert run(f"import lapilli; {is_right}(None))", tmp_path).stdout.strip() == "True"
    bare = f"import os, lapilli; os.environ['XLA_FLAGS'] = ''; {is_right}({fault.faulty}))"
    assert (run(bare, tmp_path).stdout.strip() == "False") == fault.is_in_release


@pytest.mark.slow
def test_functions_of_constants_that_are_turned_are_right(tmp_path):
    """112 small programs: none is wrong after the import; without it some are, in a release with the fault."""
    assert run("import lapilli" + TURNED, tmp_path).stdout.strip() == "0"
    assert (int(run(TURNED, tmp_path).stdout) > 0) == _compiler.FAULTS[1].is_in_release


def test_a_flag_of_the_users_that_keeps_the_remedy_out_is_warned_of(tmp_path):
    code = "import lapilli; from lapilli import ppl; import os; print(os.environ['XLA_FLAGS'])"
    ran = run(code, tmp_path, "--xla_disable_hlo_passes=dce")
    assert ran.stdout.startswith("--xla_disable_hlo_passes=dce --xla_cpu")
    assert (
        "set XLA_FLAGS=--xla_disable_hlo_passes=constant_folding" in ran.stderr
    ) == _compiler.FAULTS[1].is_in_release
