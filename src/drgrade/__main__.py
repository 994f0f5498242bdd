"""``python -m drgrade``: the command line."""

import sys

from drgrade.cli import main

sys.exit(main())
