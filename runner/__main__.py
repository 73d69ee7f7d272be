"""`python -m runner`, and the script `runner`."""

from runner.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
