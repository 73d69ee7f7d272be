"""Entry point of `python -m runner` and of the script `runner`."""

try:
    from runner.cli import main
except KeyboardInterrupt:  # while modules are loaded; afterwards main() sees to it
    raise SystemExit(130) from None

if __name__ == "__main__":
    raise SystemExit(main())
