"""A row of the table: a name, its goals, and a function that yields one sample of every figure for each round.

Every side of a ratio is measured within a round, one after the other, so that what the machine does beside the
benchmark meets all sides alike. A ratio is formed in its round; medians are taken of the rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median

#: One round's figures by name; the unit stands in the name.
Sample = Mapping[str, float]


class Missing(Exception):  # noqa: N818 (no error: the row is left out)
    """The machine lacks what a row needs; the message names it."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: `seconds` of a load that lasts for a time, `share` of the full number of things."""

    rounds: int = 3
    seconds: float = 5.0
    share: float = 1.0

    def of(self, number: int, *, least: int = 1) -> int:
        """This size's share of a number of events, records or changes."""
        return max(least, round(number * self.share))


FULL = Size()
#: To see that everything works; its figures mean little.
QUICK = Size(rounds=1, seconds=0.5, share=0.02)


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound for one figure: for the median of its rounds, or for `each` of them."""

    figure: str
    bound: float
    at_least: bool = False
    each: bool = False

    def value(self, samples: list[float]) -> float:
        """What is held against the bound."""
        if not self.each:
            return median(samples)
        return min(samples) if self.at_least else max(samples)

    def is_met(self, samples: list[float]) -> bool:
        value = self.value(samples)
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}{' each' if self.each else ''}"


def at_least(figure: str, bound: float) -> Goal:
    """The median is to be so much, or more."""
    return Goal(figure, bound, at_least=True)


def at_most(figure: str, bound: float) -> Goal:
    """The median is to be so much, or less."""
    return Goal(figure, bound)


def never_over(figure: str, bound: float) -> Goal:
    """No round may have more."""
    return Goal(figure, bound, each=True)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table. `rounds` yields a sample for each round, without end; it may raise Missing."""

    name: str
    measures: str
    against: str
    goals: tuple[Goal, ...]
    rounds: Callable[[Size], Iterator[Sample]]
