"""`imagetool` and `python -m imagetool`."""

import sys

try:
    from imagetool.cli import main
except KeyboardInterrupt:  # while modules are loaded; afterwards main() sees to it
    raise SystemExit(130) from None

if __name__ == "__main__":
    sys.exit(main())
