"""`python -m prefect_environments`: the command line."""

import sys

from prefect_environments.cli import script

sys.exit(script())
