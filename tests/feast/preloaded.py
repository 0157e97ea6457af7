"""Feast's command line and servers, as the server that forks processes imports them: without Polars, whose thread a
forked process would miss. Feast's command line has it for drawing trees, and does without it where it is absent.
"""

import importlib
import sys

import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, "polars", None)
    for name in ("feast.cli.cli", "feast.feature_server", "feast_quorin.server.app"):
        importlib.import_module(name)
