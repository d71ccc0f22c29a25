"""What a plain install must do with its hard dependencies alone: import every module, fit, predict, save and load, describe.

python -I .ci/bare.py      in an environment that holds the package and what it requires
"""

import importlib
import re
import sys
import tempfile
import time
import warnings
from importlib.metadata import requires, version
from pathlib import Path
from pkgutil import walk_packages


def import_everything() -> tuple[int, int]:
    """Import each public module; how many there are, and how many of them ask for an extra in our words."""
    package = importlib.import_module("lapilli")
    found = [m.name for m in walk_packages(package.__path__, "lapilli.")]
    modules = [name for name in found if "._" not in name]
    num_extra = 0
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as err:
            if "pip install 'lapilli[" not in str(err):
                raise
            num_extra += 1
    return len(modules), num_extra


def use() -> None:
    """A model with a discrete site, from data to draws in a tree of ArviZ."""
    import jax
    import numpy as np
    import numpyro.distributions as dist

    from lapilli import inference, ppl

    x = np.linspace(-1.0, 1.0, 20, dtype=np.float32)
    y = 0.7 * x + np.where(np.arange(20) == 3, 5.0, 0.1).astype(np.float32)

    def line(x, y=None):
        slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
        with ppl.plate("rows", x.shape[0]):
            odd = ppl.sample("odd", dist.Bernoulli(0.1))
            ppl.sample("y", dist.Normal(slope * x, 0.3 + 5.0 * odd), obs=y)

    fit = inference.fit(line, args=(x, y), num_steps=300, key=jax.random.key(0), progress=False)
    assert abs(float(fit.posterior(jax.random.key(1), 200).choices["slope"].mean()) - 0.7) < 0.3
    assert fit.predict(jax.random.key(2), x[:3], num_samples=5)["y"].shape == (5, 3)
    tree = inference.to_arviz(fit, key=jax.random.key(3), num_samples=50)
    assert tree["posterior"]["slope"].shape == (1, 50)
    with tempfile.TemporaryDirectory() as folder:
        fit.save(Path(folder) / "fit.npz")
        again = inference.Fit.load(Path(folder) / "fit.npz", fit.objective)
    assert again.steps == fit.steps

    def walk(ys):
        def step(z, y):
            z = ppl.sample("z", dist.Normal(z, 1.0))
            ppl.sample("y", dist.Normal(z, 1.0), obs=y)
            return z, None

        ppl.scan(step, 0.0, ys)

    assert np.isfinite(inference.smc(walk, jax.random.key(4), y, num_particles=100).log_evidence)


def main() -> None:
    """Do all of it, and print what it was done with."""
    began = time.monotonic()
    names = [re.split(r"[^\w-]", r)[0] for r in requires("lapilli") or () if "extra ==" not in r]
    print("python", sys.version.split()[0], *(f"{name} {version(name)}" for name in names))
    for kind in (DeprecationWarning, FutureWarning):  # what the next version breaks
        warnings.filterwarnings("error", category=kind, module=r"lapilli\b")
    number, num_extra = import_everything()
    assert num_extra < 0.2 * number
    print(f"{number} modules, of which {num_extra} ask for an extra")
    use()
    print(f"1 passed in {time.monotonic() - began:.1f}s")


if __name__ == "__main__":
    main()
