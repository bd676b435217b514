"""A process that takes one large request, `python -m tests.killed URL EVENTS COMMIT`, and is killed just before that
commit of its own; it never sees the end of it.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from typing import Any

import sqlalchemy as sa

from bridge.journal.group_commit import GroupCommit
from bridge.journal.store import Journal
from bridge.model import SystemClock
from bridge.settings import Journal as JournalSettings
from tests.builders import event


def main(url: str, events: int, last: int) -> None:
    commits = itertools.count(1)

    def watch(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement == "COMMIT" and next(commits) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(sa.Engine, "before_cursor_execute", watch)
    journal = Journal(settings=JournalSettings(url=url), clock=SystemClock())
    GroupCommit(journal=journal).append([event(f"e{number}", f"c{number}") for number in range(events)])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
