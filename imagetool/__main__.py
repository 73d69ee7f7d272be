"""`imagetool` and `python -m imagetool`."""

import sys

from imagetool.cli import main

if __name__ == "__main__":
    sys.exit(main())
