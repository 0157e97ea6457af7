"""``python -m quorin`` is the command ``quorin``."""

from quorin.cli import main

if __name__ == "__main__":
    main()
