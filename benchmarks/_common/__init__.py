"""What benchmarks share: how times are taken and compared, and records for the page of figures."""

from .records import (  # fmt: skip
    digests_of as digests_of,
    parsed as parsed,
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
