"""The tree of modules, from the `nn.Module: ` events that `with_stack` and `with_modules` record. Integer nanoseconds.

A node is a chain of modules around a call, "ResNet_0/Sequential_1/Conv2d_3": the names as recorded (class and number), one
inside the other by time on the same thread; calls of the same chain are one node.

    count, host     its calls, and their length with everything inside
    device_self     device work whose innermost module it is (host.link: the backward pass counts for the forward's module)
    device          that of the node and of everything below it
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfscope.trace.columns import PYTHON, Rank
from perfscope.trace.host import MODULE, Links, threads
from perfscope.trace.nesting import nest

MOST = 2000  # nodes; a recursive model may have one for each depth


@dataclass(frozen=True)
class ModuleRow:
    """One node of the tree; rows stand in the order of the tree, each below its parent."""

    path: str
    depth: int
    count: int
    host_ns: int
    device_ns: int
    device_self_ns: int


def modules(rank: Rank, links: Links) -> tuple[ModuleRow, ...] | None:
    """The tree, parents before children, in the order of their first calls; None if no module was recorded."""
    e = rank.events
    named = np.array([n.startswith(MODULE) for n in rank.names], bool)
    rows = np.flatnonzero(named[e.name] & (e.cat == PYTHON)) if len(e) else np.zeros(0, np.int64)
    if not len(rows):
        return None
    around = nest(rows, threads(rank, rows), e.ts_ns[rows], e.ts_ns[rows] + e.dur_ns[rows])
    nodes: dict[tuple[int, int], int] = {}  # (parent's node, name) -> node
    parent_of, label, of, names = [], [], [], e.name[around.rows].tolist()
    for i, above in enumerate(around.parent.tolist()):  # sorted by start: a parent comes before its children
        key = (of[above] if above >= 0 else -1, names[i])
        if key not in nodes:
            nodes[key] = len(nodes)
            parent_of.append(key[0])
            label.append(rank.names[names[i]].removeprefix(MODULE))
        of.append(nodes[key])
    n, where = len(nodes), np.array(of)
    count, host, own = np.bincount(where, minlength=n), np.zeros(n, np.int64), np.zeros(n, np.int64)
    np.add.at(host, where, around.end - around.start)
    position = np.full(len(e), -1, np.int64)
    position[around.rows] = where
    node = np.where(links.module >= 0, position[np.maximum(links.module, 0)], -1)
    np.add.at(own, node[node >= 0], e.dur_ns[links.gpu[node >= 0]])
    total = own.copy()
    for i in range(n - 1, -1, -1):
        if parent_of[i] >= 0:
            total[parent_of[i]] += total[i]
    children: dict[int, list[int]] = {}
    for i, above in enumerate(parent_of):
        children.setdefault(above, []).append(i)
    out, todo = [], [(i, "", 0) for i in reversed(children[-1])]
    while todo and len(out) < MOST:
        i, path, depth = todo.pop()
        path = f"{path}/{label[i]}" if path else label[i]
        out.append(ModuleRow(path, depth, int(count[i]), int(host[i]), int(total[i]), int(own[i])))
        todo += [(c, path, depth + 1) for c in reversed(children.get(i, []))]
    return tuple(out)
