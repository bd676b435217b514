"""The service as it is, looking for a changed configuration each second, so that tests need not wait."""

from bridge.__main__ import main
from bridge.server import worker

LOOKS_EVERY_S = 1.0

if __name__ == "__main__":
    worker.EVERY_S = LOOKS_EVERY_S
    main()
