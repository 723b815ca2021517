"""The package `prefect_environments` that jobs see first: `Run` of the launcher that runs them.

Where the job's environment has the real package installed, everything else is that one's; `Run` must speak the
launcher's protocol, and stays. This file is its `__init__.py` (see `bootstrap.write_inside`).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.machinery import PathFinder
from typing import Any


def _set_up(names: dict[str, Any]) -> None:
    """Be the installed package, if there is one, and `Run` in any case."""
    name, own = names["__name__"], os.path.realpath(os.path.dirname(os.path.dirname(names["__file__"])))  # noqa: PTH120
    run = import_module(".inside.run", name).Run  # the copy that lies beside this one
    found = PathFinder.find_spec(name, [place for place in sys.path if os.path.realpath(place) != own])
    if found is not None and found.loader is not None and found.submodule_search_locations:
        names["__spec__"], names["__file__"] = found, found.origin
        names["__path__"] = [*found.submodule_search_locations, *names["__path__"]]
        found.loader.exec_module(sys.modules[name])
    names["Run"] = run


if __name__ == "prefect_environments":
    _set_up(globals())
