"""Train a logistic regression, log its loss as it goes, and leave the model in the outputs."""
# mypy: disable-error-code="import-not-found, import-untyped, unused-ignore"

import sys

import numpy as np
from data import points, probabilities

from prefect_environments import Run


def main(epochs: int) -> None:
    run = Run.get_context()
    features, labels = points(seed=1)
    weights = np.zeros(features.shape[1])
    for epoch in range(epochs):
        guessed = probabilities(features, weights)
        weights -= 0.5 * features.T @ (guessed - labels) / len(labels)
        if epoch % 20 == 0:
            run.log("loss", float(-np.log(np.where(labels == 1, guessed, 1 - guessed)).mean()))
    accuracy = float(((probabilities(features, weights) > 0.5) == labels).mean())
    run.log("accuracy", accuracy)
    np.savez("outputs/model.npz", weights=weights)
    print(f"trained on {len(labels)} points with numpy {np.__version__}: accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
