"""What benchmarks share: how times are taken and compared, and records for the page of figures."""

from .records import (  # fmt: skip
    is_older as is_older,
    joined as joined,
    parsed as parsed,
    ran_so_far as ran_so_far,
    record_figure as record_figure,
    with_intervals as with_intervals,
)
from .timing import (  # fmt: skip
    Ratio as Ratio,
    interleaved as interleaved,
    output_of as output_of,
    paired as paired,
    without_cache as without_cache,
)
