"""A program that keeps many descriptors to its end, each with an owner that closes it (see `test_forked`)."""

from __future__ import annotations

import os
import sys
import weakref


class Owner:
    def __init__(self) -> None:
        weakref.finalize(self, os.close, os.eventfd(0))


def main() -> None:
    vars(sys)["kept"] = [Owner() for _ in range(20)]
    sys.exit(0)


if __name__ == "__main__":
    main()
