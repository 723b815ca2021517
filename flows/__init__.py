"""Prefect flows: what users deploy, schedule and trigger in the UI."""

from prefect_environments.flows.build import build_environment
from prefect_environments.flows.check import check_workspace
from prefect_environments.flows.train import run_training_job

__all__ = ["build_environment", "check_workspace", "run_training_job"]
