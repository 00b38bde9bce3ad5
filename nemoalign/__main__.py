"""``python -m nemoalign`` is the same program as ``nemoalign``."""

from nemoalign.cli.app import main

if __name__ == "__main__":
    main()
