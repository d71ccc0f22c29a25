"""Files: checkpoints of a run, saved fits, exported functions. Nothing is pickled, so loading a file runs no code of it."""

from ._archive import read as read, write as write
from ._checkpoint import (
    Checkpoint as Checkpoint,
    CheckpointFile as CheckpointFile,
    fingerprint as fingerprint,
    load as load,
    save as save,
)
from ._exported import export_fit as export_fit
from ._folder import Folder as Folder, Store as Store
from ._run import StoredRun as StoredRun, describe as describe, describe_step as describe_step
from ._saved import (
    check_same as check_same,
    kept_arguments as kept_arguments,
    kept_labels as kept_labels,
    labels_in as labels_in,
    load_fit as load_fit,
    packed_fit as packed_fit,
    save_fit as save_fit,
    unpacked_fit as unpacked_fit,
)
from ._skeleton import as_skeleton as as_skeleton, from_skeleton as from_skeleton
from ._structure import hashed as hashed, structure_of as structure_of, versions as versions

__all__: list[str] = []
