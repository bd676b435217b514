"""The service as it is, with little patience and memory for its clients, so that tests need not wait."""

from bridge import worker
from bridge.__main__ import main

worker.IDLE_S = 2.0
worker.REQUEST_S = 3.0
worker.HELD_BYTES = 200_000

if __name__ == "__main__":
    main()
