"""`tools/replay.py RUN DUMP`: run a batch whose loss or gradient was not finite again and show where that begins.

Exit codes: 0 everything was finite this time, 1 it was not, 2 refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gkd import build
from gkd.build_teacher import build_teacher
from gkd.cli import run_tool
from gkd.core import distributed
from gkd.core.config import load_config
from gkd.core.errors import CheckpointError
from gkd.core.log import set_up_logging
from gkd.core.types import Batch
from gkd.data import FaceData
from gkd.schema import TrainRun
from gkd.train.batch_norm import freeze_batch_norm, keep_frozen
from gkd.train.checkpoint import Checkpoints
from gkd.train.checkpoint_marker import read_json, verify
from gkd.train.checkpoint_metadata import read_stored_tensors
from gkd.train.checkpoint_tensors import compare, read_tensors
from gkd.train.nonfinite_dump import Dump, load_dump
from gkd.train.nonfinite_trace import FirstBad, trace
from gkd.train.sharded_objective import ShardedDistillation

EXIT_REPRODUCED = 1
_NUM_NAMED = 8
_SHORTEST_NORM = 1e-6


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="tools/replay.py",
        description="Run a batch that gave a loss or gradient that is not finite again, and show where that begins.",
        epilog="exit code: 0 everything was finite this time, 1 it was not, 2 refused",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the run's folder")
    add("dump", type=Path, metavar="DUMP", help="a file of its nonfinite folder")
    add("--checkpoint", type=Path, help="the checkpoint to take; the newest whole one of the run by default")
    choices = ("fp32", "bf16", "fp16")
    add("--precision", choices=choices, default="fp32", help="arithmetic of the student (default %(default)s)")
    add("overrides", nargs="*", metavar="key=value", help="settings that replace the run's: paths that have moved")
    arguments = parser.parse_intermixed_args(argv)
    return run_tool(lambda: _replay(arguments))


def _replay(arguments: argparse.Namespace) -> int:
    set_up_logging(distributed.rank())
    dump = load_dump(arguments.dump)
    moved = [f"run.folder={arguments.run}", "evaluation.sets=[]"]
    config = load_config(arguments.run / "config.yaml", TrainRun, [*moved, *arguments.overrides])
    device = distributed.device()
    dataset = build.build_dataset(config)
    objective = _objective(config, dataset, device)
    step = _load_weights(arguments.run, arguments.checkpoint, objective)
    objective.step = dump.step
    lines = [_weights_line(step, dump)]
    lines += [f"the weights themselves are not finite: {_few(names)}" for names in [_bad_weights(objective)] if names]
    is_bad = len(lines) > 1
    for index, batch in enumerate(dump.batches):
        _train_mode(objective, config)
        found = trace(objective, _on(batch, device), precision=arguments.precision)
        lines += ["", f"micro-batch {index}: {len(batch)} images of rank {dump.rank}", *_found_lines(found)]
        lines += _image_lines(objective, _on(batch, device), dataset)
        is_bad = is_bad or found.is_bad
    lines += ["", _verdict(is_bad, step, dump, arguments.precision)]
    sys.stdout.write("\n".join(lines) + "\n")
    return EXIT_REPRODUCED if is_bad else 0


def _objective(config: TrainRun, dataset: FaceData, device: torch.device) -> Any:
    """The run's objective as `tools/train.py` builds it, with the weights that the run began with."""
    teacher = build_teacher(config, dataset, device) if config.teacher else None
    if teacher is not None:
        teacher.teacher.compile_backbone = False  # nothing could be watched inside of a compiled one
    order = build.build_order(config, dataset)
    settings = build.build_settings(config, order.images_per_epoch)
    torch.manual_seed(config.run.seed)
    objective = build.build_objective(config, dataset, teacher, settings.steps_per_epoch)
    build.build_optimizer(config, objective)  # freezes what the config freezes
    if isinstance(objective, ShardedDistillation):
        objective.share_out_teacher()
    return objective.to(device)


def _load_weights(run: Path, checkpoint: Path | None, objective: nn.Module) -> int | None:
    """Fill the objective from a checkpoint; returns its step, or None where the run has none.

    Raises:
        CheckpointError: damaged, or of another network.
    """
    path = checkpoint or Checkpoints(run / "checkpoints").latest()
    if path is None:
        return None
    sizes = {name: record.size for name, record in verify(path).files.items()}
    wanted = {f"model/{name}": tensor.detach() for name, tensor in objective.state_dict().items()}
    stored = {name: one for name, one in read_stored_tensors(path, sizes).items() if name.startswith("model/")}
    compare(path, stored, wanted)
    read_tensors(path, stored, wanted)
    step = read_json(path / "values.json").get("step")
    if type(step) is not int:
        raise CheckpointError(f"{path}: its values name no step; give the checkpoint of a training run")
    return step


def _train_mode(objective: nn.Module, config: TrainRun) -> None:
    objective.train()
    if config.train.freeze_batch_norm:
        freeze_batch_norm(objective)
    keep_frozen(objective)


def _on(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.images.to(device), batch.labels.to(device), batch.sample_ids, batch.is_flipped)


def _weights_line(step: int | None, dump: Dump) -> str:
    batch = f"batch of step {dump.step} (rank {dump.rank} of {dump.num_ranks})"
    if step is None:
        return f"{batch}; the run has no checkpoint: weights as it began"
    return f"{batch}; weights after {step} steps"


def _bad_weights(objective: nn.Module) -> list[str]:
    tensors = objective.state_dict()
    return [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]


def _found_lines(found: FirstBad) -> list[str]:
    losses = [f"{name} {value:.6g}" for name, value in found.losses.items()]
    return [
        f"  losses                     {', '.join(losses)}",
        f"  first module not finite    {found.module or 'none: all outputs of modules are finite'}",
        f"  first gradients not finite {_few(found.gradients, 3) or 'none'}",
    ]


def _image_lines(objective: Any, batch: Batch, dataset: FaceData) -> list[str]:
    """The norms of the images' embeddings, each image on its own (running statistics), and those that stand out."""
    objective.eval()
    norms, pixels = embedding_norms(objective, batch.images), batch.images.flatten(1).cpu()
    is_flat = pixels.amin(1) == pixels.amax(1)
    finite = norms[torch.isfinite(norms)]
    span = f"{finite.min():.4g} to {finite.max():.4g}, median {finite.median():.4g}" if len(finite) else "none finite"
    lines = [f"  embedding norms            {span} (each image on its own, with running statistics)"]
    odd = (~torch.isfinite(norms) | (norms < _SHORTEST_NORM) | is_flat).nonzero().flatten().tolist()
    for row in odd[:_NUM_NAMED]:
        note = f", all pixels are {int(pixels[row, 0])}" if is_flat[row] else ""
        lines.append(f"    norm {norms[row]:.4g}{note}: {_place(dataset, int(batch.sample_ids[row]))}")
    if len(odd) > _NUM_NAMED:
        lines.append(f"    … {len(odd)} such images in all")
    if not odd:
        places = [_place(dataset, number) for number in batch.sample_ids[:_NUM_NAMED].tolist()]
        lines += ["  no image stands out; the first are", *(f"    {place}" for place in places)]
    return lines


@torch.no_grad()
def embedding_norms(objective: Any, images: Tensor) -> Tensor:
    """The L2 norm of every image's embedding (N,), on the CPU."""
    embeddings: Tensor = objective.backbone(objective.input_spec.convert(images))
    norms: Tensor = torch.linalg.vector_norm(embeddings.float(), dim=1)
    return norms.cpu()


def _place(dataset: FaceData, sample_id: int) -> str:
    if not 0 <= sample_id < len(dataset):
        return f"sample {sample_id}, which these data do not have"
    return f"sample {sample_id}, {dataset.describe(sample_id)}"


def _verdict(is_bad: bool, step: int | None, dump: Dump, precision: str) -> str:
    if is_bad:
        return "not finite again"
    if (step or 0) != dump.step:
        return (
            f"everything is finite: with the weights after {step or 0} steps, not {dump.step}. To have those, continue "
            "the run with train.save_every=1 until it stops again, and replay then"
        )
    return f"everything is finite in {precision}: the precision of the run, or its loss scale, is the likelier cause"


def _few(names: Sequence[str], count: int = _NUM_NAMED) -> str:
    return ", ".join(names[:count]) + (f" … ({len(names)} in all)" if len(names) > count else "")
