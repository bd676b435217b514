"""`poison`: CRM calls that bad records cost while the CRM says 400 and not which; against the logarithmic bound."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from statistics import median

from bridge.sandbox import Crm
from tests.rig import quiet, rigged

ROUNDS = 3
#: What five culprits, or one, among 100 may cost; and a lane in which everything is refused, before it pauses.
BOUNDS = {1: 15, 5: 60, 100: 8}
RECORDS, EXTRA = 10_000, 3


def bench() -> dict[str, object]:
    """Each case in turn, with the culprits elsewhere each time."""
    calls: dict[int, list[int]] = {bad: [] for bad in BOUNDS}
    unknown: list[int] = []
    for seed in range(ROUNDS):
        for bad, found in calls.items():
            found.append(culprits(bad, random.Random(seed)))
        unknown.append(unknown_property())
    figures: dict[str, object] = {"name": "poison"}
    for bad, bound in BOUNDS.items():
        figures[f"{bad} of 100"] = {"calls": calls[bad], "ratio": round(median(calls[bad]) / bound, 2)}
    bound = RECORDS // 100 + EXTRA
    figures["unknown property"] = {"calls": unknown, "ratio": round(median(unknown) / bound, 2)}
    return figures


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


if __name__ == "__main__":
    quiet()
    print(bench())  # noqa: T201
