"""Settings and fixtures that all tests share."""

import gc
import os
import sys
from pathlib import Path
from zlib import crc32

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytest_plugins = ["_durations", "_refusals"]


def _configure() -> None:
    """CPU, one compilation cache for all workers, a share of the cores per worker, no windows.

    Environment variables, so that subprocesses started by tests inherit the settings; a variable
    that is already set wins.
    """
    settings = {
        "MPLBACKEND": "agg",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    num_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if num_workers > 1:
        num_threads = str(max(1, (os.cpu_count() or 1) // num_workers))
        # NPROC is what XLA's CPU client sizes its thread pool by.
        for name in ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            settings[name] = num_threads
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    import lapilli  # noqa: F401  (sets XLA_FLAGS, which JAX reads when its backend starts)

    if "jax" in sys.modules:  # a plugin came first: JAX reads the environment at import only
        import jax

        jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


_configure()
gc.disable()  # until the tests are collected: what is imported stays


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed-shift",
        type=int,
        default=0,
        help="added to every seed of the `seed` and `key` fixtures, to try fresh seeds",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark as slow the variants that `make test` leaves out, by the marks `slow_for` and `one_in`, or by `fast` alone."""
    met: set[str] = set()  # functions
    named: dict[str, set[str]] = {}  # function -> variants that its marks name and nobody met yet
    for item in items:
        if not hasattr(item, "callspec"):
            continue
        function = item.nodeid.partition("[")[0]
        variant = item.callspec.id  # type: ignore[attr-defined]
        names = {mark.name: mark.args for mark in item.iter_markers()}
        explicit = names.get("fast", names.get("slow_for", ()))
        named.setdefault(function, set(explicit)).discard(variant)
        if "fast" in names:
            is_kept = variant in explicit
            if is_kept and "slow" in names:
                raise pytest.UsageError(f"{item.nodeid} is marked both fast and slow")
        else:
            chosen = crc32(item.name.encode()) % names.get("one_in", (1,))[0] == 0
            is_kept = variant not in explicit and (chosen or function not in met)
        met.add(function)
        if not is_kept:
            item.add_marker(pytest.mark.slow)
    if any("::" in name for name in config.args):
        return  # not all variants were collected
    for function, unknown in named.items():
        if unknown:
            raise pytest.UsageError(f"{function}: its marks name no variants: {sorted(unknown)}")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Look for garbage less often, and never among what is imported: traces are many small objects, and it took an eighth."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
    gc.enable()


@pytest.fixture(scope="session")
def key(request):
    """The random key of seed 0 (plus --seed-shift), for tests in which one draw is enough."""
    import jax

    return jax.random.key(request.config.getoption("--seed-shift"))


@pytest.fixture(params=(0, 1, 2), ids="seed{}".format)
def seed(request):
    """The random key of seed 0, 1 and 2 (plus --seed-shift) in turn, for statistical tests."""
    import jax

    return jax.random.key(request.param + request.config.getoption("--seed-shift"))
