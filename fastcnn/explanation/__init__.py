"""What each layer of a model does with fastcnn and with torch: times measured here, kernels, and why those."""

from fastcnn.explanation.explain import Explanation, explain
from fastcnn.explanation.measure import LayerTime, measure_layers

__all__ = ["Explanation", "LayerTime", "explain", "measure_layers"]
