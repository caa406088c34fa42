"""TensorBoard summaries beside scalars: histograms and images."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata

NUM_BINS = 30


def histogram(tag: str, values: npt.NDArray[np.float64]) -> Summary.Value | None:
    """How `values` are spread, over bins of equal width; None where none of them is finite."""
    values = values[np.isfinite(values)].astype(np.float64)
    if not values.size:
        return None
    counts, edges = np.histogram(values, bins=NUM_BINS)
    proto = HistogramProto(
        min=values.min(),
        max=values.max(),
        num=values.size,
        sum=values.sum(),
        sum_squares=np.square(values).sum(),
        # A bucket's limit is its upper end; an empty one below the first gives that its lower end.
        bucket_limit=edges.tolist(),
        bucket=[0, *counts.tolist()],
    )
    return Summary.Value(tag=tag, histo=proto)


def image(tag: str, pixels: npt.NDArray[np.uint8], description: str = "") -> Summary.Value:
    """An RGB picture (H, W, 3) as PNG, with a line of Markdown that says what it shows."""
    height, width = pixels.shape[:2]
    is_encoded, png = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    assert is_encoded, "OpenCV writes every uint8 picture of three channels as PNG"
    encoded = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png.tobytes())
    plugin = SummaryMetadata.PluginData(plugin_name="images")
    return Summary.Value(
        tag=tag, image=encoded, metadata=SummaryMetadata(summary_description=description, plugin_data=plugin)
    )
