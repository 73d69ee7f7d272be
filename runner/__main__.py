"""Entry point of `python -m runner` and of the script `runner`."""

from runner.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
