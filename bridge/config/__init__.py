"""The configuration: `bridge.yaml` in, frozen settings or all its problems out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.config.loading import Findings, Loaded, examine, load
from bridge.settings import Settings

__all__ = ["Findings", "Loaded", "examine", "json_schema", "load", "load_settings"]


def load_settings(path: Path, *, environ: Mapping[str, str] | None = None, sandbox: bool = False) -> Settings:
    """The settings that the file holds. Raises ConfigError with all problems at once."""
    return load(path, environ=environ, sandbox=sandbox).settings


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of `bridge.yaml`, for editors."""
    from bridge.config.editor_schema import build_schema

    return build_schema()
