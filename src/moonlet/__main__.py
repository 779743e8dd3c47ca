"""`python -m moonlet` is the command `moonlet`."""

import sys

from moonlet.cli.main import main

sys.exit(main())
