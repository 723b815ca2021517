"""The tests of tasks use the workspaces and wheels of those of flows."""

from tests.flows.conftest import local, remote, server, wheels

__all__ = ["local", "remote", "server", "wheels"]
