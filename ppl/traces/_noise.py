"""Other noise for chosen sites, all else equal."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Array
from numpyro.primitives import Messenger

from .._types import Message

SALT = "lapilli_salt"
# A site that is met again in the same region draws from the key of its name, not of its address: the same noise again.
COMMON = "lapilli_common_noise"


class Salted(Messenger):
    """Draw the sites named in `salts` (name -> integer) under an expectation from keys of their own.

    Two runs with equal keys and salts draw equal values; a site whose salt differs gets independent noise, in all its
    steps, rows and particles, while every other site keeps its own.
    """

    def __init__(self, salts: Mapping[str, Array]) -> None:
        super().__init__()
        self.salts = salts

    def process_message(self, msg: Message) -> None:
        if msg["type"] == "sample" and not msg["is_observed"] and msg["name"] in self.salts:
            msg["infer"] = {**(msg["infer"] or {}), SALT: self.salts[msg["name"]]}
