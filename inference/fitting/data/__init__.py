"""Where a training step gets its arguments from: the full data, random minibatches of it, or an iterable of batches.

`make_source` decides, and refuses what would be scaled wrongly. The compiled loop knows a `Source` alone. What a step sees
depends only on (key, step) and the data, so a resumed run sees the same; the scale of every subsampled plate is known to the
objective.
"""

from ._batches import Batches as Batches, is_iterable_of_batches as is_iterable_of_batches
from ._buffers import held as held
from ._full import FullData as FullData
from ._interface import Source as Source
from ._minibatches import Minibatches as Minibatches
from ._process_local import ProcessLocal as ProcessLocal
from ._reader import LoaderState as LoaderState
from ._row_blocks import RowBlocks as RowBlocks
from ._sharding import SEEDS as SEEDS
from ._source import (
    make_source as make_source,
    row_blocks as row_blocks,
    with_rows_of_all as with_rows_of_all,
)

__all__: list[str] = []
