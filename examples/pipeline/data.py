"""Points of two kinds around two centres, the same ones for the same seed."""
# mypy: disable-error-code="import-not-found, import-untyped, unused-ignore"

from typing import Any

import numpy as np


def points(seed: int, count: int = 400) -> tuple[Any, Any]:
    """Features (count, 3), the last one constant, and labels 0 or 1 (count)."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    places = random.normal(0, 1, (count, 2)) + np.where(labels[:, None] == 1, 1.8, -1.8)
    return np.column_stack([places, np.ones(count)]), labels


def probabilities(features: Any, weights: Any) -> Any:
    """How probable label 1 is for each point."""
    return 1 / (1 + np.exp(-features @ weights))
