"""`python -m gate`."""

import sys

from gate.run import main

if __name__ == "__main__":
    sys.exit(main())
