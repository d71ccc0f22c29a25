"""What benchmarks share: how times are taken and compared."""

from .timing import (  # fmt: skip
    Ratio as Ratio,
    interleaved as interleaved,
    output_of as output_of,
    paired as paired,
    without_cache as without_cache,
)
