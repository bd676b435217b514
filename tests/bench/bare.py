"""The ceiling: a bare Flask view that answers 202, under the same gunicorn worker, and as many of them."""

from __future__ import annotations

import sys
from typing import Any

from flask import Flask, Response, request
from gunicorn.app.base import BaseApplication

from bridge.server.worker import BridgeWorker


def app() -> Flask:
    made = Flask("bare")

    @made.post("/webhooks/acme")
    def webhook() -> Response:
        request.get_data()
        return Response(b"{}", 202, content_type="application/json")

    return made


class BareWorker(BridgeWorker):
    """Our worker without our service."""

    def load_wsgi(self) -> None:
        self.wsgi = self.app.wsgi()

    def _give_up(self) -> None:
        """There is no service that could be of no use any more."""


class Bare(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    def __init__(self, port: int, workers: int) -> None:
        self._options = {
            "bind": [f"127.0.0.1:{port}"],
            "workers": workers,
            "worker_class": BareWorker,
            "keepalive": 75,
            "control_socket_disable": True,
            "loglevel": "warning",
        }
        super().__init__()

    def load_config(self) -> None:
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return app()


if __name__ == "__main__":
    Bare(*map(int, sys.argv[1:3])).run()
