"""The package `prefect_environments` that jobs see first: `Run` of the launcher that runs them.

Where the job's environment has the real package installed, everything else is that one's; `Run` must speak the
launcher's protocol, and stays.
"""

import os
import sys
from importlib.machinery import PathFinder

from .inside.run import Run

_own = os.path.realpath(os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120
_found = PathFinder.find_spec(__name__, [place for place in sys.path if os.path.realpath(place) != _own])

if _found is not None and _found.loader is not None and _found.submodule_search_locations:
    __spec__ = _found
    __file__ = _found.origin or __file__
    __path__ = [*_found.submodule_search_locations, *__path__]
    _found.loader.exec_module(sys.modules[__name__])

globals()["Run"] = Run  # the installed package may have one, too
