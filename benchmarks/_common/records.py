"""Records for the page of figures, written as examples write theirs, and what has run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .timing import Ratio

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
from _ran import is_older as is_older, joined as joined
from _record import parsed as parsed, ran_so_far as ran_so_far, record_figure as record_figure


def with_intervals(found: Mapping[str, Ratio]) -> dict[str, Any]:
    """The fields of a record for medians by name: `value`, and as `spread` half of their 95% intervals."""
    return {
        "value": {name: ratio.median for name, ratio in found.items()},
        "spread": {name: (ratio.high - ratio.low) / 2 for name, ratio in found.items()},
    }
