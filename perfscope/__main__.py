"""`python -m perfscope`, and the `perfscope` command."""

import sys

from perfscope.cli import main


def run() -> None:
    sys.exit(main())


if __name__ == "__main__":
    run()
