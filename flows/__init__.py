"""Prefect flows: what users deploy, schedule and trigger in the UI."""

from prefect_environments.flows.build import build_environment

__all__ = ["build_environment"]
