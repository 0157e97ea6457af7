"""A web application over a store that its master process has opened and read before it forks its workers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.feast.repos import make_store

FEATURES = ["customer_stats:score"]
ROWS = {"customer": ["alice", "nobody"]}

store = make_store(Path(os.environ["REPO"]), json.loads(os.environ["ONLINE_STORE"]), data=Path(os.environ["DATA"]))
store.get_online_features(FEATURES, ROWS).to_dict()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The answer to one request, and which process gave it."""
    features = environ["QUERY_STRING"].split(",") if environ["QUERY_STRING"] else FEATURES
    if environ["PATH_INFO"] == "/refresh":
        store.refresh_registry()
    answer = store.get_online_features(features, ROWS)
    body = json.dumps({"pid": os.getpid(), "kind": type(answer).__name__, **answer.to_dict()}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
