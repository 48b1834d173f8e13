"""`python -m fxcompress` is the command `fxcompress`."""

import sys

from fxcompress.cli import main

if __name__ == "__main__":
    sys.exit(main())
