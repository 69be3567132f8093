"""Run the `neoxkit` command with python -m neoxkit.cli."""

import sys

from neoxkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
