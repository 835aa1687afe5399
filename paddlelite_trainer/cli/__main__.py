"""`python -m paddlelite_trainer.cli` is the command `paddlelite`."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
