"""Relational Knowledge Distillation: distances and angles among the images of a batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gkd.core.classes import compute_dtype
from gkd.core.types import Losses
from gkd.distill.loss import DistillLoss, check_embeddings, check_weights, unit_vectors

# Unit vectors closer than this count as one point: in fp32 their difference is rounding and has no direction.
_SHORTEST_DISTANCE = 1e-6
# Triplets that the angles are computed for at a time: 32 MiB in float64, a batch of 128 images in one go.
_CHUNK_TRIPLETS = 2**22


class RelationalKD(DistillLoss):
    """Match the relations among the batch's embeddings, which may be of another length than the teacher's.

    With unit vectors x, d_ij = ||x_i - x_j||, μ the mean of d over the pairs i ≠ j of the batch, h the Huber loss with
    delta 1 and, over triplets of distinct images with the vertex j, cos_ijk the cosine between x_i - x_j and x_k - x_j,
        distance = mean over pairs of h(d_ij^S / μ^S, d_ij^T / μ^T)
        angle    = mean over triplets of h(cos_ijk^S, cos_ijk^T)
        total    = distance_weight·distance + angle_weight·angle.
    With one image both are 0, with two the angle is. Relations are those of the images that one rank sees at once, its
    share of a micro-batch: unlike other losses this one changes with the number of ranks and of micro-batches.

    Source: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068, section 3.2; 25 and 50
    are the weights that public code for classification uses. Differences: embeddings of both networks are normalised
    first; the paper's sums are means over the pairs and triplets of distinct images (the authors' code divides by N²
    and N³, and leaves pairs of distance 0 out of μ). Angles come from the distances by the law of cosines, in float64,
    so that no tensor of N·N·D numbers is made. Equal embeddings have distance 0, and cosine 0 in every angle with such
    a side; neither gives them a gradient.

    Args:
        distance_weight: of distance, at least 0; at 0 it is not computed.
        angle_weight: of angle, at least 0; at 0 it is not computed.

    Raises:
        ConfigError: a value outside its range.
    """

    needs: frozenset[str] = frozenset({"embeddings"})

    def __init__(self, *, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        self.weights = check_weights("rkd", {"distance": distance_weight, "angle": angle_weight})

    def forward(self, student_embeddings: Tensor, teacher_embeddings: Tensor, labels: Tensor) -> Losses:
        """The losses of one batch, in fp32 (float64 where either input is).

        Args:
            student_embeddings: (N, D_S); the only input that gets a gradient, in its own type.
            teacher_embeddings: (N, D_T).
            labels: int64 (N,); the shape is checked, otherwise not used.

        Returns:
            Losses with stats `student_mean_distance` and `teacher_mean_distance` (μ of both networks).

        Raises:
            ConfigError: shapes or types do not fit.
        """
        check_embeddings(student_embeddings, teacher_embeddings, labels)
        dtype = compute_dtype(student_embeddings, teacher_embeddings)
        student, teacher = pair_distances(student_embeddings), pair_distances(teacher_embeddings.detach())
        terms = {"distance": _distance_term, "angle": _angle_term}
        parts = {name: terms[name](student, teacher).to(dtype) for name, weight in self.weights.items() if weight}
        total = torch.stack([self.weights[name] * part for name, part in parts.items()]).sum()
        stats = {"student_mean_distance": _mean(student.detach()), "teacher_mean_distance": _mean(teacher)}
        return Losses(total, parts, stats)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}_weight={weight}" for name, weight in self.weights.items())


def pair_distances(embeddings: Tensor) -> Tensor:
    """Distances between the normalised embeddings (N, D): float64 (N, N), exactly 0 between equal ones."""
    vectors = unit_vectors(embeddings, torch.float64)
    # From differences: products would leave equal vectors a little apart. The gradient is 0 where the distance is.
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.masked_fill(distances <= _SHORTEST_DISTANCE, 0.0)


def _mean(distances: Tensor) -> Tensor:
    """μ, the mean over the pairs of different images; 0 with one image."""
    num_images = len(distances)
    return distances.sum() / max(1, num_images * (num_images - 1))


def _distance_term(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Huber loss over pairs of images of their distances relative to μ."""
    return _mean(F.huber_loss(_relative(student), _relative(teacher), reduction="none"))


def _relative(distances: Tensor) -> Tensor:
    mean = _mean(distances)
    return distances / mean.masked_fill(mean == 0, 1.0)


def _angle_term(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Huber loss over triplets of images of the cosines at their vertices."""
    num_images = len(student)
    # A chunk's cosines are made again on the way back, so memory does not grow with the number of chunks.
    sums = [
        checkpoint(_angle_sum, student, teacher, vertices, use_reentrant=False, preserve_rng_state=False)
        for vertices in _vertex_chunks(num_images)
    ]
    return torch.stack(sums).sum() / max(1, num_images * (num_images - 1) * (num_images - 2))


def _vertex_chunks(num_images: int) -> Iterator[slice]:
    step = max(1, _CHUNK_TRIPLETS // num_images**2)
    for start in range(0, num_images, step):
        yield slice(start, start + step)


def _angle_sum(student: Tensor, teacher: Tensor, vertices: slice) -> Tensor:
    losses = F.huber_loss(_cosines(student, vertices), _cosines(teacher, vertices), reduction="none")
    is_one_image = torch.eye(len(student), dtype=torch.bool, device=student.device)
    return losses.masked_fill(is_one_image, 0.0).sum()


def _cosines(distances: Tensor, vertices: slice) -> Tensor:
    """cos_ijk = (d_ji² + d_jk² - d_ik²) / (2 d_ji d_jk) for the vertices j: (J, N, N); 0 where a side is 0."""
    sides = distances[vertices]
    is_point = sides == 0
    inverse = sides.masked_fill(is_point, 1.0).reciprocal().masked_fill(is_point, 0.0)
    squares = sides.square()
    numerator = squares[:, :, None] + squares[:, None, :] - distances.square()
    return numerator * (inverse[:, :, None] * inverse[:, None, :] / 2)
