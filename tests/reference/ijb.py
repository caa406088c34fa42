"""The 1:1 protocol of IJB-B and IJB-C as loops over images, medias, templates and pairs, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def template_vectors(
    embeddings: np.ndarray,
    templates: Sequence[int],
    medias: Sequence[int],
    detector_scores: Sequence[float] | None,
    use_norm_score: bool,
) -> np.ndarray:
    """The unit vector of each template, by ascending template number."""
    faces = []
    for index, embedding in enumerate(np.asarray(embeddings, np.float64)):
        face = embedding.copy()
        if not use_norm_score:
            face = face / np.sqrt(sum(value * value for value in face))
        if detector_scores is not None:
            face = face * detector_scores[index]
        faces.append(face)
    vectors = []
    for template in sorted(set(templates)):
        own = [index for index in range(len(faces)) if templates[index] == template]
        total = np.zeros(np.shape(embeddings)[1])
        for media in sorted({medias[index] for index in own}):
            frames = [faces[index] for index in own if medias[index] == media]
            mean = np.zeros_like(total)
            for frame in frames:
                mean = mean + frame
            total = total + mean / len(frames)
        vectors.append(total / np.sqrt((total * total).sum()))
    return np.array(vectors)


def pair_scores(vectors: np.ndarray, left: Sequence[int], right: Sequence[int]) -> list[float]:
    """The cosine of each pair of unit vectors."""
    return [
        sum(a * b for a, b in zip(vectors[one].tolist(), vectors[other].tolist(), strict=True))
        for one, other in zip(left, right, strict=True)
    ]


def threshold_at_far(scores: Sequence[float], is_same: Sequence[bool], target: float) -> float:
    """The smallest observed score such that the share of different pairs at or above it is at most the target."""
    different = [score for score, label in zip(scores, is_same, strict=True) if not label]
    fitting = [score for score in set(scores) if sum(other >= score for other in different) / len(different) <= target]
    return min(fitting, default=float("inf"))
