"""`python -m pipeline.cli`: the console script `wit` where it is not installed."""

import sys

from pipeline.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
