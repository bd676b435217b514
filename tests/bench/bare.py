"""The ceiling: a bare Flask view that answers 202, under the same gunicorn class, workers and threads."""

from __future__ import annotations

import sys
from typing import Any

from flask import Flask, Response, request
from gunicorn.app.base import BaseApplication


def app() -> Flask:
    made = Flask("bare")

    @made.post("/webhooks/acme")
    def webhook() -> Response:
        request.get_data()
        return Response(b"{}", 202, content_type="application/json")

    return made


class Bare(BaseApplication):  # type: ignore[misc]  # gunicorn ships no types
    def __init__(self, port: int, workers: int, threads: int) -> None:
        self._options = {
            "bind": [f"127.0.0.1:{port}"],
            "workers": workers,
            "threads": threads,
            "worker_class": "gthread",
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
    Bare(*map(int, sys.argv[1:4])).run()
