"""Files: checkpoints of a run, saved fits, exported functions. Nothing is pickled, so loading a file runs no code of it."""

from ._checkpoint import (
    Checkpoint as Checkpoint,
    fingerprint as fingerprint,
    load as load,
    save as save,
)
from ._exported import export_fit as export_fit
from ._replacing import check_writable as check_writable
from ._run import Run as Run, describe as describe, describe_step as describe_step
from ._saved import load_fit as load_fit, save_fit as save_fit

__all__: list[str] = []
