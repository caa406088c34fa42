"""`tools/replay.py`: a kept batch is run again, and what is not finite is named, or said to be finite now."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from gkd import build
from gkd.cli.replay import main
from gkd.core.config import load_config
from gkd.core.errors import GkdError
from gkd.core.types import Batch, Losses
from gkd.data import RecordWriter
from gkd.schema import TrainRun
from gkd.train.checkpoint import Checkpoints
from gkd.train.nonfinite import NonFiniteGuard
from tests.train.tiny_run import NUM_IDENTITIES, ROOT, SIZE, config, picture, write_data

DAMAGED = 3  # a black image, of identity 0
NAN = float("nan")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of one epoch, by its folder."""
    from gkd.cli.train import main as train

    folder = tmp_path_factory.mktemp("run")
    write_data(folder)
    black = cv2.imencode(".jpg", np.zeros((SIZE, SIZE, 3), np.uint8))[1].tobytes()
    with RecordWriter(folder / "train.rec") as writer:
        for index in range(8 * NUM_IDENTITIES):
            writer.write(index // 8, black if index == DAMAGED else picture(index // 8, index % 8))
    assert train([str(config(folder)), "train.epochs=1", "evaluation.sets=[]"]) == 0
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, at another place."""
    return Path(shutil.copytree(finished, tmp_path / "moved"))


def keep_batch(run: Path, step: int, *sample_ids: int) -> Path:
    """A dump of these images, as the guard of a run makes it."""
    dataset = build.build_dataset(load_config(run / "config.yaml", TrainRun))
    records = [dataset[sample_id] for sample_id in sample_ids]
    decoded = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) for data, _ in records]
    batch = Batch(
        torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2),
        torch.tensor([label for _, label in records]),
        torch.tensor(sample_ids),
        torch.zeros(len(records)).bool(),
    )
    with pytest.raises(GkdError):
        NonFiniteGuard(run).check(step, torch.tensor(NAN), [Losses(torch.tensor(NAN), {})], [batch])
    return run / "nonfinite" / f"step_{step:08d}_rank0.pt"


def save_with(run: Path, step: int, name: str, value: float, num_elements: int = 1) -> Path:
    """A checkpoint of fresh weights with `value` in the first elements of the tensor `name`."""
    settings = load_config(run / "config.yaml", TrainRun)
    dataset = build.build_dataset(settings)
    objective = build.build_objective(settings, dataset, None, 6)
    state = objective.state_dict()
    state[name].view(-1)[:num_elements] = value
    tensors = {f"model/{key}": tensor for key, tensor in state.items()}
    # What else a run keeps is no concern of a replay.
    return Checkpoints(run / "checkpoints").save(step, tensors | {"momentum/x": torch.ones(2)}, {"step": step})


def replay(capsys, *arguments: object) -> tuple[int, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_a_batch_that_is_finite_again_is_said_to_be(run, capsys):
    code, output = replay(capsys, run, keep_batch(run, 6, 0, 9, 20))
    assert code == 0, output
    assert "batch of step 6 (rank 0 of 1); weights after 6 steps" in output
    assert re.search(r"micro-batch 0: 3 images of rank 0\n  losses +classification \d+\.\d+, total \d+\.\d+\n", output)
    assert re.search(r"first module not finite +none", output)
    assert re.search(r"first gradients not finite +none", output)
    assert re.search(r"embedding norms +\d[\d.e+-]* to \d[\d.e+-]*, median \d", output)
    assert "no image stands out; the first are\n    sample 0, " in output
    assert "train.rec: " in output
    assert "everything is finite in fp32: the precision of the run, or its loss scale, is the likelier cause" in output


def test_a_batch_of_a_later_step_than_the_weights_is_told(run, capsys):
    code, output = replay(capsys, run, keep_batch(run, 9, 0, 9))
    assert code == 0
    assert "with the weights after 6 steps, not 9. To have those, continue the run with train.save_every=1" in output


def test_a_black_image_is_found_in_its_batch_and_in_the_data(run, capsys):
    _, output = replay(capsys, run, keep_batch(run, 6, 0, DAMAGED, 20))
    lines = [line for line in output.splitlines() if "all pixels are 0" in line]
    assert len(lines) == 1
    assert re.search(rf"norm \d\S*, all pixels are 0: sample {DAMAGED}, .*train\.rec: .*\d", lines[0])
    assert "no image stands out" not in output


def test_embeddings_without_a_length_are_listed(run, capsys):
    save_with(run, 7, "backbone.features.weight", 0.0, 16)
    code, output = replay(capsys, run, keep_batch(run, 7, *range(10)))
    assert code == 0
    assert output.count("    norm 0: sample ") + output.count("    norm 0, all pixels are 0: sample ") == 8
    assert "    … 10 such images in all" in output


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("backbone.layer2.0.conv1.weight", r"backbone\.layer2\.0\.conv1 \(Conv2d\)"),
        ("backbone.layer4.1.bn2.bias", r"backbone\.layer4\.1\.bn2 \(BatchNorm2d\)"),
        ("head.weight", "none: all outputs of modules are finite"),
    ],
)
def test_weights_that_are_not_finite_are_reproduced_and_located(run, capsys, name, module):
    save_with(run, 7, name, NAN)
    code, output = replay(capsys, run, keep_batch(run, 7, 0, 9, 20))
    assert code == 1, output
    assert f"the weights themselves are not finite: {name}\n" in output
    if module.startswith("none"):
        assert "classification nan" in output
        assert re.search(r"first gradients not finite +head\.weight", output)
    else:
        assert re.search(rf"first module not finite +{module}\n", output), output
    assert output.endswith("not finite again\n")


def test_the_newest_checkpoint_is_taken_unless_another_is_named(run, capsys):
    bad = save_with(run, 7, "backbone.layer2.0.conv1.weight", NAN)
    dump = keep_batch(run, 7, 0, 9, 20)
    good = next(path for path in bad.parent.iterdir() if path != bad)
    assert replay(capsys, run, dump)[0] == 1
    assert replay(capsys, run, dump, "--checkpoint", bad)[0] == 1
    assert replay(capsys, run, dump, "--checkpoint", good)[0] == 0


def test_a_run_without_a_checkpoint_is_replayed_as_it_began(run, capsys):
    shutil.rmtree(run / "checkpoints")
    code, output = replay(capsys, run, keep_batch(run, 0, 0, 9), "--precision", "bf16")
    assert code == 0
    assert "the run has no checkpoint: weights as it began" in output
    assert "everything is finite in bf16" in output


def test_every_micro_batch_is_run_as_training_runs_it(run, capsys):
    """Looking at images one by one in between must not leave the batch norms in another mode."""
    dump = keep_batch(run, 6, 0, 9, 20)
    plain = torch.load(dump, weights_only=True)
    plain["batches"] *= 2
    torch.save(plain, dump)
    output = replay(capsys, run, dump)[1]
    assert "micro-batch 1: 3 images" in output
    found = re.findall(r"losses +classification (\S+),", output)
    assert len(found) == 2
    assert float(found[0]) == pytest.approx(float(found[1]), rel=1e-3)


def test_a_sample_that_the_data_do_not_have_is_no_crash(run, capsys):
    dump = keep_batch(run, 6, 0, 9)
    plain = torch.load(dump, weights_only=True)
    plain["batches"][0]["sample_ids"][1] = 10_000
    torch.save(plain, dump)
    assert "sample 10000, which these data do not have" in replay(capsys, run, dump)[1]


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda run: (run, run / "nothing.pt"), "nothing.pt: no such file"),
        (lambda run: (run / "elsewhere", keep_batch(run, 6, 0, 9)), "elsewhere/config.yaml"),
        (lambda run: (run, keep_batch(run, 6, 0, 9), "--checkpoint", run), "complete.json"),
        (lambda run: (run, keep_batch(run, 6, 0, 9), "backbone.embedding_dim=8"), "of another network"),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_one_message(run, capsys, prepare, reason):
    code, output = replay(capsys, *prepare(run))
    assert code == 2
    assert output.count("error: ") == 1
    assert reason in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_the_tool_itself(run):
    tool = [sys.executable, str(ROOT / "tools" / "replay.py"), str(run), str(keep_batch(run, 6, 0, 9))]
    result = subprocess.run(tool, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert "everything is finite in fp32" in result.stdout
