"""python -m neoxkit.cli: the same as the `neoxkit` command."""

import sys

from neoxkit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
