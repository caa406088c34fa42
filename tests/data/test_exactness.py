"""Which images a run sees, through real loading processes: each exactly once an epoch, whoever loads and resumes."""

from __future__ import annotations

import numpy as np
import pytest

from gkd.data import RecordFile, TrainLoader, decode_image
from gkd.data.batches import BatchPlan
from gkd.data.face_data import FaceData
from gkd.data.sampling import Balanced, Uniform
from tests.data.faces import write_faces

NUM_IMAGES, BATCH_SIZE, EPOCHS, SEED = 48, 12, 3, 7
TOTAL_STEPS = EPOCHS * NUM_IMAGES // BATCH_SIZE
SIZE = (16, 16)
SAMPLINGS = {"uniform": Uniform(), "balanced": Balanced(images_per_identity=3)}


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> RecordFile:
    path = tmp_path_factory.mktemp("faces") / "train.rec"
    write_faces(path, NUM_IMAGES, 8)
    return RecordFile(path)


def load(
    faces: FaceData, sampling: str, world_size: int, start: int, stop: int, num_workers: int = 2
) -> dict[int, list[int]]:
    """The ids of every global batch of the steps `start` to `stop` - 1, put together from all ranks; pixels checked."""
    order = SAMPLINGS[sampling].order(faces, seed=SEED, batch_size=BATCH_SIZE)
    batches: dict[int, list[int]] = {step: [] for step in range(start, stop)}
    for rank in range(world_size):
        plan = BatchPlan(order, batch_size=BATCH_SIZE, rank=rank, world_size=world_size)
        with TrainLoader(
            faces, plan, image_size=SIZE, total_steps=stop, start_step=start, num_workers=num_workers
        ) as loader:
            for batch in loader:
                ids = batch.sample_ids.tolist()
                batches[batch.step] += ids
                assert batch.labels.tolist() == [faces.labels[index] for index in ids]
                for pixels, index in zip(batch.images.numpy(), ids, strict=True):
                    np.testing.assert_array_equal(pixels, decode_image(faces[index][0], SIZE, "image"))
    return batches


@pytest.mark.parametrize("sampling", ["uniform", "balanced"])
def test_two_ranks_with_two_workers_see_each_image_once_an_epoch(faces: RecordFile, sampling: str) -> None:
    batches = load(faces, sampling, 2, 0, TOTAL_STEPS)
    assert list(batches) == list(range(TOTAL_STEPS))
    per_epoch = NUM_IMAGES // BATCH_SIZE
    epochs = [
        [index for step in range(epoch * per_epoch, (epoch + 1) * per_epoch) for index in batches[step]]
        for epoch in range(EPOCHS)
    ]
    assert all(sorted(seen) == list(range(NUM_IMAGES)) for seen in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("sampling", ["uniform", "balanced"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_run_stopped_anywhere_goes_on_with_the_same_sequence(
    faces: RecordFile, sampling: str, world_size: int
) -> None:
    whole = load(faces, sampling, 2, 0, TOTAL_STEPS, num_workers=0)
    for stopped in range(TOTAL_STEPS):
        num_workers = 2 if stopped in (1, 5) else 0  # processes take time to start
        rest = load(faces, sampling, world_size, stopped, TOTAL_STEPS, num_workers)
        assert rest == {step: ids for step, ids in whole.items() if step >= stopped}
