"""Dictionaries that work out what they do not have yet, once per distinct key: numbers of texts, what a name or category means."""

from __future__ import annotations

import re

from perfscope.trace.columns import DATA, KNOWN, LOADER, OTHER, STEP

# calls that neither put work on the device nor wait for it (CUDA Runtime API and HIP, by their documentation): in no figure of
# the summary, and half of the calls of a training step
UNUSED = re.compile(
    r"(?:cuda|hip)(?:Event(?:Record(?:WithFlags)?|Query|Create(?:WithFlags)?|Destroy|ElapsedTime)|"
    r"Stream(?:IsCapturing|Get\w+|Query|WaitEvent|Create\w*|Destroy)|DeviceGet\w+|DeviceCanAccessPeer|"
    r"Func(?:Set|Get)\w+|Occupancy\w+|PointerGet\w+|Get\w+|SetDevice|PeekAtLastError)"
)


class Numbers(dict):
    """text -> its number, in the order of arrival."""

    def __missing__(self, key):
        value = self[key] = len(self)
        return value


class Ids(Numbers):
    """Like Numbers, with "25738" and 25738 the same thread (the 2021 layout writes both)."""

    def __missing__(self, key):
        if isinstance(key, str) and key.isdigit() and len(key) < 19:
            value = self[key] = self[int(key)]
            return value
        return super().__missing__(key)


class Categories(dict):
    """category -> its index in CATEGORIES."""

    def __missing__(self, key):
        value = self[key] = KNOWN.get(key.lower(), OTHER)
        return value


class Used(dict):
    """name of a call -> whether the summary needs it."""

    def __missing__(self, key):
        value = self[key] = UNUSED.fullmatch(key) is None
        return value


class Marks(dict):
    """name -> whether the summary needs it although it is an operator's."""

    def __missing__(self, key):
        value = self[key] = key.startswith((STEP, LOADER, DATA))
        return value
