"""The image under test, built once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.containers import TOP, Engine, make_base


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The image is there as `engine.image`."""
    made = Engine(tmp_path_factory.mktemp("image"))
    try:
        make_base(made)
        made.build(TOP, made.image)
        yield made
    finally:
        made.close()
