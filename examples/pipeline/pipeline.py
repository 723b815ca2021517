"""Build, train, evaluate: a flow of your own, made of the flows of this package.

    python examples/pipeline/pipeline.py --base python:3.12-slim

It needs nothing but a base image: images, versions and outputs are in a folder, jobs run in Docker or else as
processes, and where no Prefect server is set up, a temporary one is started.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")  # the usual 20 s are too few

from prefect import flow

from prefect_environments import EnvironmentDefinition, JobResult, ScriptRunConfig, Workspace
from prefect_environments.flows import build_environment, run_training_job

HERE = Path(__file__).parent
WANTED = 0.9
"""The accuracy that a model must have."""


@flow(persist_result=False)
def pipeline(environment: EnvironmentDefinition, workspace: Workspace, outputs_directory: str) -> dict[str, float]:
    """Give the accuracies of a new model, in training and on new data."""
    ready = build_environment(environment, workspace)
    training = ScriptRunConfig(source_directory=str(HERE), script="train.py", arguments=("200",), environment=ready)
    trained = run_training_job(training, workspace, outputs_directory=outputs_directory)
    with TemporaryDirectory() as folder:
        source = evaluation(trained, Path(folder))
        evaluating = ScriptRunConfig(source_directory=source, script="evaluate.py", environment=ready, outputs="")
        evaluated = run_training_job(evaluating, workspace)
    found = {"training": trained.metrics["accuracy"], "evaluation": evaluated.metrics["accuracy"]}
    if float(found["evaluation"]) < WANTED:
        raise ValueError(f"the model of the job {trained.id} is not good enough: {found}")
    print(f"the model in {trained.outputs} was made in {trained.reference}")
    return {name: float(value) for name, value in found.items()}


def evaluation(trained: JobResult, folder: Path) -> str:
    """The source of the second job: its script, and the model that the first one left."""
    for script in ("evaluate.py", "data.py"):
        shutil.copy(HERE / script, folder)
    shutil.copy(Path(trained.outputs, "model.npz"), folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    slim = f"python:{sys.version_info[0]}.{sys.version_info[1]}-slim"
    parser.add_argument("--base", default=slim, help="base image, such as python:3.12-slim or oci:<folder>:<name>")
    parser.add_argument("--folder", default=".demo/pipeline", type=Path, help="where all of it is kept")
    arguments = parser.parse_args()
    environment = EnvironmentDefinition(
        name="pipeline", base_image=arguments.base, requirements=(HERE / "requirements.txt").read_text()
    )
    found = pipeline(environment, Workspace.local(arguments.folder), str(arguments.folder / "jobs"))
    print(", ".join(f"{name} {accuracy:.3f}" for name, accuracy in found.items()))


if __name__ == "__main__":
    main()
