"""The service as it is, in a process that may open few files, and with little patience for what others left behind."""

import resource

from bridge.__main__ import main
from bridge.journal import appending

FILES = 64

appending.ABANDONED_AFTER_US = 3_000_000

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    main()
