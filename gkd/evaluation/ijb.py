"""The 1:1 verification protocols of IJB-B and IJB-C: TAR at FAR over pairs of templates.

Source: the public insightface evaluation (eval_ijbc), whose defaults are followed: a face is aligned by its five
landmarks; the embeddings of image and mirror image are summed (`use_flip_test`), keep their length
(`use_norm_score`) and are multiplied by the face detector's score (`use_detector_score`); frames of one video are
averaged, the medias of a template summed, the sum divided by its length; pairs are scored by the cosine. The public
AdaFace evaluation is the same without the detector's score.

Where we differ: scores are float32 products of float64 sums, not float64 ones. TAR is that of the loosest observed
threshold whose FAR is at most the target, where the public code takes the point of the curve whose FAR is nearest to
the target on either side.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gkd.core.errors import DataError
from gkd.evaluation.tar_far import far_name
from gkd.evaluation.template_scores import Indices, operating_points, pool_templates, score_pairs


@dataclass(frozen=True)
class IjbOptions:
    """What goes into a template; the defaults are those of the public evaluation.

    Attributes:
        use_flip_test: the embedding of an image is the sum of its own and that of its mirror image.
        use_detector_score: embeddings are multiplied by the face detector's score.
        use_norm_score: embeddings keep their length; otherwise they are divided by it before anything is weighted.
    """

    use_flip_test: bool = True
    use_detector_score: bool = True
    use_norm_score: bool = True


@dataclass(frozen=True)
class IjbResult:
    """The figures of one network on one protocol. Rates are fractions, thresholds cosines.

    `tar_at_far`, `threshold_at_far`: by FAR; None where there are too few different pairs to measure it. A threshold
    is +inf where nothing may be accepted.
    `seconds`: of each part of the work, by its name; not compared.
    """

    name: str
    tar_at_far: dict[float, float | None]
    threshold_at_far: dict[float, float | None]
    num_images: int
    num_templates: int
    num_pairs: int
    num_same: int
    options: IjbOptions
    seconds: dict[str, float] = field(compare=False)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`; FARs are named like `1e-4`, what is None or infinite is None."""
        return {
            "name": self.name,
            "tar_at_far": {far_name(far): tar for far, tar in self.tar_at_far.items()},
            "threshold_at_far": {far_name(far): _finite(value) for far, value in self.threshold_at_far.items()},
            "num_images": self.num_images,
            "num_templates": self.num_templates,
            "num_pairs": self.num_pairs,
            "num_same": self.num_same,
            "options": asdict(self.options),
            "seconds": dict(self.seconds),
        }


def verify_templates(
    embeddings: npt.NDArray[Any],
    template_of: Indices,
    media_of: Indices,
    detector_scores: npt.NDArray[Any],
    left: Indices,
    right: Indices,
    is_same: npt.NDArray[np.bool_],
    *,
    name: str = "IJB",
    options: IjbOptions | None = None,
) -> IjbResult:
    """Judge embeddings by the protocol above, with N images, T templates and P pairs.

    Args:
        embeddings: (N, D), of any length; sums of image and mirror image where `options.use_flip_test` says so, which
            is only recorded here.
        template_of: (N,), 0 to T - 1.
        media_of: (N,), whole numbers.
        detector_scores: (N,).
        left, right: (P,), 0 to T - 1.
        is_same: (P,) bool.
        name: names the protocol in the result.
        options: `IjbOptions()` where not given.

    Raises:
        DataError: the shapes do not fit, an embedding or a template is unfit, or the labels are all the same.
    """
    options = options or IjbOptions()
    if not len(embeddings):
        raise DataError(f"{name}: there are no images")
    start = time.perf_counter()
    templates = pool_templates(
        embeddings,
        template_of,
        media_of,
        int(template_of.max()) + 1,
        detector_scores=detector_scores if options.use_detector_score else None,
        use_norm_score=options.use_norm_score,
    )
    pooled = time.perf_counter()
    scores = score_pairs(templates, left, right)
    scored = time.perf_counter()
    points = operating_points(scores, is_same)
    return IjbResult(
        name=name,
        tar_at_far={far: None if point is None else point.tar for far, point in points.items()},
        threshold_at_far={far: None if point is None else point.threshold for far, point in points.items()},
        num_images=len(embeddings),
        num_templates=len(templates),
        num_pairs=len(scores),
        num_same=int(np.count_nonzero(is_same)),
        options=options,
        seconds={"pooling": pooled - start, "scoring": scored - pooled, "rates": time.perf_counter() - scored},
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
