"""The command ``quorin``, which is ``python -m quorin`` too."""

from __future__ import annotations

import sys

from quorin.errors import MissingExtraError, needs_extra


def main() -> None:
    """Run the command; without the extra ``cli``, say how to install it."""
    try:
        with needs_extra("cli"):
            from quorin.cli import main as run
    except MissingExtraError as error:
        sys.exit(f"error: {error}")
    run()


if __name__ == "__main__":
    main()
