"""Pruning: versions that nobody needs go, with their images and all that is left over beside them.

policy ──▶ plan (pure) ──▶ version by version: announce, look again, delete, look again ──▶ leftovers

`run.prune_environments` does all of it; `claims` is the builds' side of the protocol, `use` that of jobs.
"""
