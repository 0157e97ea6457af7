"""Machine-learning features served from shared memory. The public modules are named in ``docs/architecture.md``."""

__version__ = "0.1.0"
