"""The service as it is, with little patience and memory for its clients, so that tests need not wait."""

from bridge.__main__ import main
from bridge.server import port, room, worker

port.IDLE_S = 2.0
port.REQUEST_S = 3.0
worker.STRANGE_BYTES = 200_000
room.LARGEST = 0

if __name__ == "__main__":
    main()
