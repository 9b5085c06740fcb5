"""Serving: models behind a web page and a small JSON API."""

from .batching import BatchingQueue
from .engines import Engines, load_engines
from .server import Limits, build_app, listen

__all__ = ["BatchingQueue", "Engines", "Limits", "build_app", "listen", "load_engines"]
