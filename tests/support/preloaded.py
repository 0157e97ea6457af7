"""What the server that forks processes of tests imports, as its first module: those that its environment names, and all
kernels.

An error ends the server, and the first test that needs it fails. A collection would walk through all that is imported
and find nothing, in the server while it imports, and in each of its processes.
"""

import gc
import importlib
import os

from quorin.engine import kernels

PRELOADED = "QUORIN_TESTS_PRELOADED"

if names := os.environ.pop(PRELOADED, ""):
    gc.disable()
    for name in names.split():
        importlib.import_module(name)
    kernels.load()
    gc.freeze()
    gc.enable()
