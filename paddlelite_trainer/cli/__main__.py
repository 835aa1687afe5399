"""`python -m paddlelite_trainer.cli` is the command `paddlelite`; Paddle's launcher starts this file by its path."""

import sys

if not __package__:  # started by its path
    from pathlib import Path

    sys.path[0] = str(Path(__file__).parents[2])

from paddlelite_trainer.cli import main

if __name__ == "__main__":
    sys.exit(main())
