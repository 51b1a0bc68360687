"""Runs the command as ``python -m captum_unioncam``."""

import sys

from captum_unioncam.cli import main

if __name__ == "__main__":
    sys.exit(main())
