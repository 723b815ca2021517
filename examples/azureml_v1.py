"""A script for Azure ML's SDK v1 that moved over: only its import lines, and where its workspace is, are other ones.

python examples/azureml_v1.py [FOLDER [BASE IMAGE]]

The workspace is a folder here; a team's is `Workspace.load("team")`. The environments ask conda for nothing but
Python 3.11 (no package of the channel is named), so the Python of the base image serves and no channel is asked.
"""

import sys
from pathlib import Path

# from azureml.core import Environment, Workspace
# from azureml.core.conda_dependencies import CondaDependencies
from prefect_environments import CondaDependencies, Environment, Workspace

given = dict(zip(("folder", "base"), sys.argv[1:], strict=False))
folder = Path(given.get("folder", ".azureml-v1"))
ws = Workspace.local(folder)  # ws = Workspace.from_config()
ws.default_base_image = given.get("base", "python:3.11-slim")

# an environment of conda and pip packages
conda = CondaDependencies()
conda.add_channel("pytorch")
conda.add_conda_package("python=3.11")
conda.add_pip_package("pyyaml")
env = Environment("pytorch")
env.python.conda_dependencies = conda
env.register(ws)

# six versions of another one, of which only the variables differ: they share one image
for number in range(1, 7):
    env = Environment("my-env")
    env.python.conda_dependencies = conda
    env.environment_variables["OMP_NUM_THREADS"] = str(number)
    registered = env.register(ws)

envs = ws.environments
for name, environment in envs.items():
    print(name, environment.version)

# a version by its number, in a folder that SDK v1 can read
env = Environment.get(ws, "my-env", version=6)
path = folder / "my-env"
env.save_to_directory(path, overwrite=True)
print("saved", *sorted(file.name for file in path.iterdir()))

# built already: found by its hash
built = registered.build_local(ws, useDocker=True, pushImageToWorkspaceAcr=True)
print("reused", built.reused, built.reference)
