"""Programs that measure, each run as ``python -m benchmarks.<name>``; ``--help`` tells what it does."""
