"""The tests of tasks use the workspaces and wheels of those of flows."""

from tests.flows.conftest import local as local
from tests.flows.conftest import remote as remote
from tests.flows.conftest import server as server
from tests.flows.conftest import wheels as wheels
