"""The console: what operators see at `GET /` of the admin port. Pages are made here; scripts only draw charts."""

from bridge.operations.console.pages import console_blueprint

__all__ = ["console_blueprint"]
