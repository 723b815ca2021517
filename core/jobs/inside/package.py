"""The package `prefect_environments` that jobs see first: `Run` of the launcher that runs them.

Where the job's environment has the real package installed, everything else is that one's; `Run` must speak the
launcher's protocol, and stays.
"""

import os
import sys
from importlib import import_module
from importlib.machinery import PathFinder

Run = import_module(".inside.run", __name__).Run  # the copy that lies beside this one
_names = globals()
_own = os.path.realpath(os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120
_found = PathFinder.find_spec(__name__, [place for place in sys.path if os.path.realpath(place) != _own])

if _found is not None and _found.loader is not None and _found.submodule_search_locations:
    _names["__spec__"], _names["__file__"] = _found, _found.origin
    _names["__path__"] = [*_found.submodule_search_locations, *_names["__path__"]]
    _run = Run
    _found.loader.exec_module(sys.modules[__name__])
    _names["Run"] = _run
