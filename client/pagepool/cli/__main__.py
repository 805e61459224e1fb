"""``python -m pagepool.cli``."""

from pagepool.cli.app import main

if __name__ == "__main__":
    main()
