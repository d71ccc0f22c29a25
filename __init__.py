"""Lapilli: probabilistic programs on NumPyro whose objectives and gradient estimators are data.

The three packages are imported on first use, so that `import lapilli` costs next to nothing:

- `lapilli.ppl`: the language (programs, traces, strategies, expectation, marginal, normalize);
- `lapilli.inference`: objectives, fitting, particles, diagnostics, export to ArviZ;
- `lapilli.models`: model families written in the language.

`lapilli.workarounds()` lists the faults of other packages that are mended here.
"""

from typing import TYPE_CHECKING

from ._compiler import keep_out_faults
from ._on_use import on_use
from ._workarounds import Workaround as Workaround, workarounds as workarounds

if TYPE_CHECKING:
    from . import inference as inference, models as models, ppl as ppl

keep_out_faults()

__version__ = "0.2.0"
__all__ = ["Workaround", "__version__", "inference", "models", "ppl", "workarounds"]

__getattr__, __dir__ = on_use(__name__, ("inference", "models", "ppl"), globals())
