"""Try a model on points that it has never seen."""
# mypy: disable-error-code="import-not-found, import-untyped, unused-ignore"

import numpy as np
from data import points, probabilities

from prefect_environments import Run


def main() -> None:
    weights = np.load("model.npz")["weights"]
    features, labels = points(seed=2)
    accuracy = float(((probabilities(features, weights) > 0.5) == labels).mean())
    Run.get_context().log("accuracy", accuracy)
    print(f"accuracy {accuracy:.3f} on {len(labels)} new points")


if __name__ == "__main__":
    main()
