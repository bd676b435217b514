"""`poison`: CRM calls that bad records cost while the CRM says 400 and not which; against the logarithmic bound."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bridge.sandbox import Crm
from tests.bench.row import Row, Sample, Size, never_over
from tests.rig import quiet, rigged

#: What one or five culprits among 100 may cost; and a lane in which everything is refused, before it pauses.
BOUNDS = {1: 15, 5: 60, 100: 8}
RECORDS, EXTRA = 10_000, 3


def rounds(size: Size) -> Iterator[Sample]:
    """The culprits are elsewhere each time. Counts, no times: the sandbox is in this process."""
    quiet()
    chance = random.Random(3)
    while True:
        yield {
            **{f"calls, {bad} of 100 bad": culprits(bad, chance) for bad in BOUNDS},
            "calls, a property unknown in 10,000": unknown_property(),
        }


def culprits(bad: int, chance: random.Random) -> int:
    """The calls until nothing is due, or the lane pauses; the good ones must have been applied."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, rigged(Path(name)) as rig:
        rig.crm.behaviour.multi_status = False
        rig.crm.behaviour.naming = "none"
        chosen = set(chance.sample(range(100), bad))
        rig.ask_all({f"c{at}": {"tier": "platinum" if at in chosen else "gold"} for at in range(100)})
        if bad == 100:
            rig.until(lambda: rig.reasons() == ["misconfigured"])
            calls = len(rig.calls())
            assert rig.entries() == {}
        else:
            rig.until(rig.idle, within_s=60)
            calls = len(rig.calls())
            assert rig.held().keys() == {f"c{at}" for at in range(100) if at not in chosen}
            assert rig.parked().keys() == {f"c{at}" for at in chosen}
        return calls


def unknown_property() -> int:
    """The calls for 10,000 records that all have a property which does not exist."""
    crm = Crm(open_properties=False)
    crm.behaviour.multi_status = False
    with tempfile.TemporaryDirectory(prefix="bench-") as name, rigged(Path(name), crm, flush_interval_s=0.5) as rig:
        rig.ask_all({f"c{at}": {"company_name": "a", "gone": "b"} for at in range(RECORDS)})
        rig.until(rig.idle, within_s=120)
        assert len(rig.held()) == RECORDS
        assert all(values == {"company_name": "a"} for values in rig.held().values())
        return len(rig.calls())


ROW = Row(
    name="poison",
    measures="calls while the CRM answers 400 and not which: 1, 5, 100 bad records of 100; an unknown property in each "
    "of 10,000",
    against="⌈log₂⌉; the good ones applied meanwhile",
    goals=(
        *(never_over(f"calls, {bad} of 100 bad", bound) for bad, bound in BOUNDS.items()),
        never_over("calls, a property unknown in 10,000", RECORDS // 100 + EXTRA),
    ),
    rounds=rounds,
)
