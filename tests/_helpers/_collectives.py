"""What the compiled text of a program says of communication between devices.

A collective in the body of a loop counts once: what is asked is what a step does. Sizes are those of the results on one device.
"""

import re
from collections import Counter

KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all|collective-broadcast"
_OP = re.compile(rf"= (\(?[a-z0-9]+\[[^=]*?) ({KINDS})(?:-start)?\(")
_SHAPE = re.compile(r"([a-z]+)(\d+)?\[([\d,]*)\]")


def collectives(text):
    """Kind -> how many there are in a compiled program."""
    return Counter(kind for _, kind in _OP.findall(text))


def sizes(text, kind):
    """Bytes of the results of each collective of a kind, largest first."""
    return sorted(
        (_bytes(shape) for shape, found in _OP.findall(text) if found == kind), reverse=True
    )


def _bytes(shapes):
    total = 0
    for kind, bits, dims in _SHAPE.findall(shapes):
        number = 1
        for dim in filter(None, dims.split(",")):
            number *= int(dim)
        total += number * (1 if kind == "pred" else int(bits or 8) // 8)
    return total


def has_host_transfers(text):
    """Whether something goes to the host or calls back while the program runs."""
    return bool(re.search(r"\b(infeed|outfeed|send|recv)\(|callback", text))
