"""``python -m kombulite``."""

from kombulite.cli import main

if __name__ == "__main__":
    main()
