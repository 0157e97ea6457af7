"""A serving process in a mount namespace of its own, whose ``/dev/shm`` no other process sees.

``python -m tests.support.namespaced URL``: follows, and prints its rows as a line of JSON for each line that it reads.
"""

from __future__ import annotations

import json
import sys

from quorin import assembly
from quorin.errors import QuorinError
from quorin.follower import Follower
from quorin.layout import iterate_occupied
from quorin.shm import SegmentRegistry


def main() -> None:
    """Answer until the input ends."""
    registry = SegmentRegistry(sys.argv[1])
    with Follower(registry, capacity=64):
        for name in sys.stdin:
            try:
                with registry.open_stored(name.strip()) as segment:
                    ids = sorted(entity_id for entity_id, _ in iterate_occupied(segment))
                    rows = assembly.read(segment, ids).to_pylist()
                    age = segment.confirmed_age_seconds()
                    answer = {"node": registry.node.id, "segment": segment.name, "rows": rows, "age": age}
            except QuorinError as error:
                answer = {"error": str(error)}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
