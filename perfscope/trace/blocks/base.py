"""What a block is made of: sentences, and a table of cells that know what they are sorted by."""

from __future__ import annotations

from dataclasses import dataclass

ALL, BRIEF = 40, 10  # rows of a long table on the page, and in the terminal and Markdown


@dataclass(frozen=True)
class Cell:
    """One cell: what is shown, and what it is sorted by."""

    text: str
    sort: float | str | None = None


@dataclass(frozen=True)
class Block:
    """Sentences and a table. `wide`: columns that only the page shows; `total`: rows there are (the page has ALL, the others BRIEF)."""

    name: str
    title: str
    lines: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    rows: tuple[tuple[Cell, ...], ...] = ()
    wide: tuple[int, ...] = ()
    total: int = 0


def ms(ns: float | None) -> Cell:
    """Nanoseconds as milliseconds."""
    return Cell("–" if ns is None else f"{ns / 1e6:.3f}" if abs(ns) < 1e9 else f"{ns / 1e6:.1f}", ns)


def number(value: int | None) -> Cell:
    """A count."""
    return Cell("–" if value is None else str(value), value)


def part(value: float | None) -> Cell:
    """A share, as a percentage."""
    return Cell("–" if value is None else f"{100 * value:.1f} %".replace("-0.0 %", "0.0 %"), value)
