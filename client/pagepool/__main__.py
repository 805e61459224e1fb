"""``python -m pagepool``."""

from pagepool.cli.start import main

if __name__ == "__main__":
    main()
