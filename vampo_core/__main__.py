"""``python -m vampo_core`` is the command ``vampo``."""

import sys

from vampo_core.cli.parser import main

sys.exit(main())
