"""Dockerfiles built by Azure Container Registry Tasks: no Docker engine is needed where the flow runs."""
