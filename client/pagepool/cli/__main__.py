"""``python -m pagepool.cli``."""

from pagepool.cli.quick import main

if __name__ == "__main__":
    main()
