"""Which request is which call of HubSpot's API."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Endpoint = Literal["update", "read", "list", "get", "properties", "property", "token", "usage", "none"]

_VERSION = r"(?:v\d+|\d{4}-\d{2}(?:-beta)?)"
_OBJECTS = rf"/crm/(?:v\d+/objects|objects/{_VERSION})"
_ROUTES: tuple[tuple[str, re.Pattern[str], Endpoint], ...] = (
    ("POST", re.compile(r"/.+/([^/]+)/batch/update"), "update"),
    ("POST", re.compile(r"/.+/([^/]+)/batch/read"), "read"),
    ("POST", re.compile(rf"/oauth/{_VERSION}/token()"), "token"),
    ("GET", re.compile(rf"/crm/(?:v\d+/properties|properties/{_VERSION})/([^/]+)"), "properties"),
    ("GET", re.compile(rf"/crm/(?:v\d+/properties|properties/{_VERSION})/([^/]+)/([^/]+)"), "property"),
    ("GET", re.compile(r"/account-info/v3/api-usage/daily(?:/private-apps)?()"), "usage"),
    ("GET", re.compile(rf"{_OBJECTS}/([^/]+)"), "list"),
    ("GET", re.compile(rf"{_OBJECTS}/([^/]+)/[^/]+"), "get"),
)


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. Header names are in lower case; `connected` tells whether the client still waits."""

    method: str
    path: str
    body: bytes = b""
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    connected: Callable[[], bool] = lambda: True


class Route(NamedTuple):
    """What a path stands for; `status` is 200, or 404 or 405 (endpoint "none")."""

    endpoint: Endpoint
    object_type: str
    status: int = 200

    @property
    def right(self) -> str:
        return "write" if self.endpoint == "update" else "read"

    @property
    def scope(self) -> str:
        """The scope that the call needs [spec PC-v3]; none is named for the Properties API."""
        return f"crm.objects.{self.object_type.replace('_', '-')}.{self.right}"


def find(method: str, path: str) -> Route:
    """The route of a request.

    Any prefix is taken for the `api_path` of a batch call; create and upsert are not served, as they do not
    exist for partner_clients [spec PC-v3].
    """
    status = 404
    for wanted, pattern, endpoint in _ROUTES:
        match = pattern.fullmatch(path)
        if match is None:
            continue
        if method == wanted:
            return Route(endpoint, match.group(1))
        status = 405
    return Route("none", "", status)
