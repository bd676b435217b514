"""What loading one part of the file may look at besides the file: variables, folder, purpose."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Surroundings:
    """`folder` is where relative files of the part being loaded are looked for.

    `sandbox`: the CRM's token is not needed. `lenient`: only what prevents building is an error,
    because the rest has been reported. `body`: how the source being loaded reads bodies.
    """

    environ: Mapping[str, str]
    folder: Path
    sandbox: bool = False
    lenient: bool = False
    body: str = "json"


surroundings: ContextVar[Surroundings] = ContextVar("surroundings")
