"""How finely jumps are searched for."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class JumpSearch:
    """How finely jumps are searched for: `check_jumps=ppl.JumpSearch(num_points=512)` for narrow windows and high dimensions.

    A path runs through the values of one site, or through the parameters, is evaluated at `num_points` steps, and is halved
    where it changes most. A window of width w on a path of length l is met by one path with probability about
    w * num_points / l, and by all together about `num_paths` times as often. Time grows with both, as far as `budget` allows.

    Attributes:
        num_paths: paths for each site; fewer in spaces of more than 4096 / num_paths dimensions, in proportion.
        num_points: steps of a path's grid.
        budget: numbers computed in all evaluations of one search (1e9: a second or so on one core). Programs that compute more
            get fewer paths, down to an eighth.
        threshold: the smallest jump, in relation to 1 + |value|. Numbers of 32 bits in the program leave steps of 1e-7.

    Raises:
        ValueError: a number is not positive, or there are fewer paths or points than these.
    """

    num_paths: int = 96
    num_points: int = 32
    budget: float = 5e8
    threshold: float = 1e-5

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0 or (field.type == "int" and not isinstance(value, int)):
                kind = "positive whole number" if field.type == "int" else "positive number"
                raise ValueError(f"JumpSearch: {field.name} must be a {kind}, got {value!r}.")
            default: Any = field.default
            if field.type == "int" and value < default:
                raise ValueError(
                    f"JumpSearch: {field.name}={value} is coarser than the default, {default}, whose paths have to meet "
                    "all kinds of starts, lengths and data. Give more, or skip the search by check_jumps=False."
                )

    def paths(self, num_dimensions: int) -> int:
        """Fewer paths in a larger space."""
        share = int(self.num_paths * _DIMENSIONS // max(num_dimensions, 1))
        return max(min(share, self.num_paths), -(-self.num_paths // 6))

    @property
    def min_paths(self) -> int:
        """However much a program computes."""
        return -(-self.num_paths // 8)


_DIMENSIONS = 4096 / 96  # up to which all paths are taken
CheckJumps = bool | JumpSearch


def search_of(check: CheckJumps) -> JumpSearch:
    """The search that is asked for.

    Raises:
        TypeError: neither a boolean nor a `JumpSearch`.
    """
    if isinstance(check, JumpSearch):
        return check
    if isinstance(check, bool):
        return JumpSearch()
    raise TypeError(
        f"check_jumps must be True, False or a ppl.JumpSearch, got {check!r}. For a finer search: "
        "check_jumps=ppl.JumpSearch(num_paths=..., num_points=...)."
    )
