"""Train a classifier on the iris flowers, which scikit-learn brings along, and keep the model and its metrics."""
# mypy: disable-error-code="import-not-found, import-untyped"

import json
from pathlib import Path

import joblib
import pandas
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

OUTPUTS = Path("outputs")  # what a job leaves in this folder is kept


def main() -> None:
    data = load_iris(as_frame=True)
    features, labels = data.data, data.target
    print(f"{len(features)} flowers, {features.shape[1]} measures, pandas {pandas.__version__}")
    train, test, train_labels, test_labels = train_test_split(
        features, labels, test_size=0.3, stratify=labels, random_state=7
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    model.fit(train, train_labels)
    accuracy = float(accuracy_score(test_labels, model.predict(test)))
    metrics = {
        "accuracy": accuracy,
        "log_loss": float(log_loss(test_labels, model.predict_proba(test))),
        "flowers": {"train": len(train), "test": len(test)},
    }
    OUTPUTS.mkdir(exist_ok=True)
    joblib.dump(model, OUTPUTS / "model.joblib")
    (OUTPUTS / "metrics.json").write_text(json.dumps(metrics, indent=2))
    print(f"accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
