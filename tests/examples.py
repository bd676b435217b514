"""How many examples a law is tried with: few by day, several times as many beside the heavy tests of `.ci/run`."""

from __future__ import annotations

import os

#: `.ci/run` sets it.
TIMES = int(os.environ.get("EXAMPLES_TIMES", "1"))
#: Where a law says nothing else: enough for a fault in the common case of each of its branches. Rarer ones are found
#: by the many parametrized laws beside it, and there.
BY_DAY = 25


def examples(by_day: int = BY_DAY) -> int:
    """The number for `settings(max_examples=…)`."""
    return by_day * TIMES
