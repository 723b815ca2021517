"""`python -m prefect_environments`: the command line."""

import sys

from prefect_environments.cli import main

sys.exit(main())
