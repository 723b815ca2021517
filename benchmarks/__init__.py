"""Measurements of what the documentation claims, beside the tool that users would pick instead."""
