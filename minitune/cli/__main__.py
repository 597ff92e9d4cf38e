"""python -m minitune.cli is the `minitune` command."""

import sys

from .main import main

sys.exit(main())
