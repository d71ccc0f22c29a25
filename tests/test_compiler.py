"""XLA's CPU compiler has two wrong rewrites; importing lapilli first keeps them out."""

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
ESTIMATE = """
import jax
from lapilli import ppl
print(ppl.expectation(lambda p: p * 1.0).value(1.0, jax.random.key(0)))
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
    assert run(code, tmp_path, mine).stdout.strip() == mine


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
    result = run(first + ESTIMATE, tmp_path)
    is_faulty = not _compiler.sums_are_right(_compiler._FAULTY)
    assert ("Import lapilli first" in result.stderr) == (warned and is_faulty)


@pytest.mark.slow
def test_the_flag_is_set_in_releases_with_the_fault_and_in_no_others(tmp_path):
    # Runs in every cell of the matrix: the range of releases in _compiler.py is what these cells find.
    right = run("import lapilli; print(lapilli._compiler.sums_are_right())", tmp_path).stdout
    bare = f"import os, lapilli; os.environ['XLA_FLAGS'] = ''; print(lapilli._compiler.sums_are_right({_compiler._FAULTY}))"
    assert right.strip() == "True"
    assert (run(bare, tmp_path).stdout.strip() == "False") == _compiler._is_concerned()
