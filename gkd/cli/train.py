"""`tools/train.py CONFIG [key=value ...] [--dry-run]`: train a teacher, a control or a distilled student."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from gkd import build
from gkd.build_teacher import HEAD_FILE, STUDENT_FILE, TeacherParts, build_teacher, check_teacher_of
from gkd.cli import run_tool
from gkd.cli.plan import format_plan
from gkd.core import distributed
from gkd.core.config import dump_yaml, load_config, to_plain
from gkd.core.errors import GkdError
from gkd.core.files import atomic_write
from gkd.core.freed_memory import keep_freed_memory
from gkd.core.log import set_up_logging
from gkd.data import FaceData, PairSet
from gkd.data.batches import BatchPlan
from gkd.data.loader import TrainLoader
from gkd.evaluation import VerificationResult
from gkd.inference.embed import default_batch_size, evaluate_pairs
from gkd.inference.embedding_files import store_bytes
from gkd.inference.evaluation_budget import evaluate_within
from gkd.inference.model_card import CARD_FILE, ModelCard, cached_text, live_text, make_card
from gkd.models import save_head, save_student
from gkd.schema import TrainRun
from gkd.train.batch_norm import averaged, own_statistics, restore_statistics, statistics, synchronise_batch_norm
from gkd.train.board_projector import Projector
from gkd.train.checkpoint import Checkpoints
from gkd.train.class_weights import read_whole
from gkd.train.disk_space import checkpoint_bytes, folder_bytes, require_space, require_writing
from gkd.train.ema import Ema
from gkd.train.metrics import BOARD_FOLDER, RunLog
from gkd.train.precision import LossScale
from gkd.train.rank_watch import RankWatch
from gkd.train.run_folder import choose_checkpoint, locked, record_start, require_same_run
from gkd.train.saving import BackgroundSaver
from gkd.train.sharded_objective import ShardedDistillation
from gkd.train.state import check_values, environment, random_state, restore_random_state, run_tensors
from gkd.train.stop import StopOnSignal
from gkd.train.trainer import Trainer

logger = logging.getLogger(__name__)

EXAMPLE = """example:
  python tools/train.py configs/quickstart/gkd.yaml optim.lr=0.05 run.folder=runs/mine
  torchrun --nproc-per-node 8 tools/train.py configs/distill/mobilefacenet_ms1mv2_gkd_from_iresnet100.yaml
"""


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="tools/train.py", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file; see configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    parser.add_argument("--dry-run", action="store_true", help="check everything and print the plan without training")
    arguments = parser.parse_intermixed_args(argv)
    return run_tool(lambda: _train_or_plan(arguments))


def _train_or_plan(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, TrainRun, arguments.overrides)
    build.require_sinks(config)
    if arguments.dry_run:
        text, is_ready = format_plan(config)
        if os.environ.get("RANK", "0") == "0":  # there is no process group yet
            sys.stdout.write(text)
        return 0 if is_ready else 2
    with distributed.process_group(config.train.timeout_minutes):
        set_up_logging(distributed.rank())
        with locked(config.run.folder):
            if distributed.rank() == 0:
                require_writing(config.run.folder)
            distributed.barrier()  # after this every rank knows that the folder exists and is ours
            return Run(config, sys.argv).train()


def check_and_describe(config: TrainRun, parts: TeacherParts, dataset: FaceData, device: torch.device) -> ModelCard:
    """Measure the teacher of `config`, refuse it below the minima set there, log its model card and return it."""
    settings, teacher, network = config.teacher, parts.teacher, parts.network
    assert settings is not None
    check = check_teacher_of(settings, teacher, dataset, device)
    if teacher.stored is None:
        execution = live_text(settings.precision, is_compiled=settings.compile)
    else:
        execution = cached_text(teacher.stored.folder, store_bytes(teacher.stored.origin))
    card = make_card(
        teacher,
        check,
        parts.input_check or "the run says what it was trained with",
        source=network.source,
        family=network.family,
        input_reason=network.input_reason,
        class_weights=parts.class_weights,
        execution=execution,
    )
    for line in card.lines():
        logger.info("%s", line)
    return card


@contextmanager
def _explained(watch: RankWatch) -> Iterator[None]:
    """Name the rank that the others waited for, where one hangs or has died; any other error goes its way."""
    try:
        yield
    except RuntimeError as error:
        if not distributed.is_communication_error(error):
            raise
        raise GkdError(watch.explain(error)) from error


class Run:
    """One training run, put together from its config."""

    def __init__(self, config: TrainRun, command: Sequence[str]) -> None:
        self.config = config
        self.command = command
        self.device = distributed.device()
        if self.device.type == "cpu":
            keep_freed_memory()
        self.folder = config.run.folder
        self.dataset = build.build_dataset(config)
        self.pair_sets = build.build_pair_sets(config.evaluation.sets)
        teacher = build_teacher(config, self.dataset, self.device) if config.teacher else None
        self.order = build.build_order(config, self.dataset)
        self.settings = build.build_settings(config, self.order.images_per_epoch)
        # Just before the weights are drawn: a control and its student start from the same ones.
        torch.manual_seed(config.run.seed)
        self.objective = build.build_objective(config, self.dataset, teacher, self.settings.steps_per_epoch).to(
            self.device
        )
        if config.train.sync_batch_norm:
            self.objective = synchronise_batch_norm(self.objective, self.device)
        build.prepare_backbone(config, self.objective)
        self.loss_scale = LossScale() if config.train.precision == "fp16" else None
        self.teacher = teacher
        self.optimizer = build.build_optimizer(config, self.objective)
        self.ema: Ema | None = None
        self.scored_sets: list[str] | None = None  # those of the first evaluation
        self.resumed_from: Path | None = None
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints", keep_last=config.train.keep_last, keep_every=config.train.keep_every
        )
        self.projector = Projector(self.folder / BOARD_FOLDER, self.dataset, config.log.projector)
        self.values = {
            "config": to_plain(config),
            "fingerprint": self.dataset.fingerprint,
            "environment": environment(),
        }

    def train(self) -> int:
        """Train to the end; returns 0, or 128 + the signal that stopped the run."""
        start_step = self._resume()
        if self.teacher is not None and start_step < self.settings.total_steps:
            self._check_teacher(self.teacher)
            if self.teacher.teacher.stored is not None:
                self.teacher.teacher.release_backbone()
            if isinstance(self.objective, ShardedDistillation):
                self.objective.share_out_teacher()
        if distributed.rank() == 0:
            self._require_space()
            record_start(self.folder, dump_yaml(self.config), self.command, self.values["environment"])
        if start_step == self.settings.total_steps:
            logger.info("this run is finished already: all %d steps are done", start_step)
            with averaged(*self._statistics()):
                if distributed.rank() == 0:  # they may have been lost
                    tensors = run_tensors(self.objective, self.optimizer, self.ema)
                    assert self.resumed_from is not None
                    self._write_weights(start_step, tensors, self.resumed_from)
        logger.info("order: %s", self.order.describe())
        for note in build.lane_notes(self.config):
            logger.warning("%s", note)
        logger.info(
            "%d images of %d identities, %d steps of %d images, %d process(es) on %s, starting at step %d",
            len(self.dataset),
            self.dataset.num_identities,
            self.settings.total_steps,
            self.settings.batch_size,
            distributed.world_size(),
            self.device.type,
            start_step,
        )
        with (
            StopOnSignal() as stop,
            RankWatch() as watch,
            BackgroundSaver(self.checkpoints, timeout_minutes=self.config.train.timeout_minutes) as self.saver,
            self._loader(start_step) as loader,
            RunLog(self.folder, start_step, build.build_sinks(self.config), self.values["config"]) as run_log,
        ):
            trainer = Trainer(
                self.objective,
                self.optimizer,
                build.build_schedule(self.config, self.order.images_per_epoch),
                self.settings,
                device=self.device,
                augment=build.build_augment(self.config),
                run_log=run_log,
                evaluate=self._evaluate,
                save=self._save,
                stop=stop,
                guard=build.build_guard(self.config),
                watch=watch,
                ema=self.ema,
                loss_scale=self.loss_scale,
                sample_view=build.build_sample_view(self.config, run_log),
            )
            with _explained(watch):
                done = trainer.fit(loader, start_step)
                self._finish_saving(done)
        logger.info("weights: %s   TensorBoard: tensorboard --logdir %s", self.folder / STUDENT_FILE, self.folder)
        return 0 if done == self.settings.total_steps else 128 + stop.signal_number

    def _check_teacher(self, teacher: TeacherParts) -> None:
        card = check_and_describe(self.config, teacher, self.dataset, self.device)
        if distributed.rank() == 0:
            with atomic_write(self.folder / CARD_FILE) as temporary:
                temporary.write_text(json.dumps(card.to_json(), indent=2) + "\n", encoding="utf-8")

    def _loader(self, start_step: int) -> TrainLoader:
        data = self.config.data
        plan = BatchPlan(
            self.order,
            batch_size=self.settings.batch_size,
            num_micro_batches=self.settings.micro_batches,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        return TrainLoader(
            self.dataset,
            plan,
            image_size=self.objective.backbone.input_size,
            total_steps=self.settings.total_steps,
            start_step=start_step,
            num_workers=data.workers,
            on_bad_record=data.on_bad_record,
            timeout_seconds=data.timeout_seconds,
            device=self.device,
            decode=data.decode,
        )

    def _resume(self) -> int:
        resume = self.config.train.resume
        path = choose_checkpoint(resume, self.checkpoints, self.folder)
        path = distributed.broadcast_object(path)
        if path is None:
            for line in build.fill_weights(self.config, self.objective, self.dataset):
                logger.info("starting from other weights: %s", line)
        if self.config.train.ema_decay is not None:
            self.ema = Ema(self.objective, self.config.train.ema_decay)
        if path is None:
            return 0
        saved = self.checkpoints.load(path, run_tensors(self.objective, self.optimizer, self.ema))
        check_values(path, saved, self.settings.total_steps)
        require_same_run(path, saved, self.values, is_explicit=resume not in ("auto", "never"))
        restore_statistics(saved.get("batch_norm", []), *self._statistics())
        step = int(saved["step"])
        restore_random_state(saved["random_state"], self.config.run.seed, step)
        if saved["config"].get("evaluation") == self.values["config"]["evaluation"]:
            self.scored_sets = self._known_sets(saved.get("scored_sets"))
        if self.loss_scale is not None and "loss_scale" in saved:
            self.loss_scale.restore(saved["loss_scale"])
        logger.info("resuming from %s", path)
        self.resumed_from = path
        return step

    def _known_sets(self, names: object) -> list[str] | None:
        """The sets that a checkpoint names, or None where it does not or names others than there are."""
        if not isinstance(names, list) or not names or not all(name in list(self.pair_sets) for name in names):
            return None
        return [name for name in self.pair_sets if name in names]

    def _require_space(self) -> None:
        size = checkpoint_bytes(run_tensors(self.objective, self.optimizer, self.ema).values())
        needed = (self.config.train.keep_last + 2) * size - folder_bytes(self.checkpoints.folder)
        require_space(self.folder, max(0, needed))

    def _statistics(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """What differs from rank to rank."""
        return statistics(self.objective), {} if self.ema is None else self.ema.statistics()

    def _save(self, step: int, score: float | None) -> None:
        own = own_statistics(*self._statistics())
        values = {**self.values, "step": step, "random_state": random_state(), "batch_norm": own}
        if self.loss_scale is not None:
            values["loss_scale"] = self.loss_scale.state()
        if self.scored_sets is not None:
            values["scored_sets"] = self.scored_sets

        def write_weights() -> None:
            assert self.saver.last_path is not None
            self._write_weights(step, self.saver.staged, self.saver.last_path)

        with averaged(*self._statistics()):
            tensors = run_tensors(self.objective, self.optimizer, self.ema)
            also = write_weights if distributed.rank() == 0 else None
            self.saver.save(step, tensors, values, score=score, also=also)

    def _finish_saving(self, step: int) -> None:
        """Wait for the last save, and try once more where it failed.

        Raises:
            GkdError: it cannot be written.
        """
        self.saver.wait()
        if not self.saver.is_last_whole:
            self._save(step, None)
            self.saver.wait()
        if not self.saver.is_last_whole:
            raise GkdError(f"training is done up to step {step}, but {self.saver.last_error}; make room and run again")

    def _write_weights(self, step: int, staged: Mapping[str, torch.Tensor], checkpoint: Path) -> None:
        """Write the backbone and the class weights for use outside of the run, from copies of the state.

        Class weights that are split over the ranks are put together from the checkpoint of the same state.
        """
        state = {name.removeprefix("model/"): tensor for name, tensor in staged.items() if name.startswith("model/")}
        state |= {name.removeprefix("ema/"): tensor for name, tensor in staged.items() if name.startswith("ema/")}
        extra = {"step": step, "total_steps": self.settings.total_steps}
        save_student(
            self.folder / STUDENT_FILE,
            self.objective.backbone,
            self.objective.input_spec,
            extra,
            state={
                name.removeprefix("backbone."): tensor for name, tensor in state.items() if name.startswith("backbone.")
            },
        )
        names = self.dataset.identity_names
        meta = {
            "num_classes": self.dataset.num_identities,
            "fingerprint": self.dataset.fingerprint,
            "identity_names": None if names is None else list(names),
            "margin": build.margin_values(self.config),
            **extra,
        }
        class_weights = state["head.weight"]
        if isinstance(class_weights, DTensor):
            name = "ema/head.weight" if "ema/head.weight" in staged else "model/head.weight"
            class_weights = read_whole(checkpoint, name)
        save_head(self.folder / HEAD_FILE, class_weights, meta)

    def _evaluate(self) -> tuple[dict[str, float], float | None]:
        """Figures of the student on every set, and their mean accuracy as the score.

        Where `evaluation.max_seconds` leaves a set out of the first evaluation of the run (with a warning), it is left
        out of all that follow, and the score is the mean over the others. Where one of these does not fit into a later
        evaluation, that one has no score (None), so that the best checkpoint is chosen among like scores. A run that
        goes on from a checkpoint keeps to the sets of its first evaluation, unless `evaluation` has been changed.
        """
        sets = {name: self.pair_sets[name] for name in self.scored_sets or self.pair_sets}
        found = evaluate_within(self.config.evaluation.max_seconds, sets, self._evaluate_on)
        if self.scored_sets is None:
            self.scored_sets = list(found.results)
        values: dict[str, float] = {}
        for name, result in found.results.items():
            values[f"eval/{name}/accuracy"] = result.accuracy
            values[f"eval/{name}/accuracy_std"] = result.accuracy_std
            values[f"eval/{name}/auc"] = result.auc
            for target, rate in result.tar_at_far.items():
                if rate is not None:
                    values[f"eval/{name}/tar@far={target:g}"] = rate
        backbone, input_spec = self.objective.backbone, self.objective.input_spec
        batch_size = self.config.evaluation.batch_size or default_batch_size(self.device)
        self.projector.show(backbone, input_spec, batch_size, self.device)
        accuracies = [result.accuracy for result in found.results.values()]
        if len(accuracies) < len(self.scored_sets):
            logger.warning("this evaluation has no score: %s took no part", ", ".join(found.left_out))
            return values, None
        return values, sum(accuracies) / len(accuracies) if accuracies else None

    def _evaluate_on(self, name: str, pair_set: PairSet) -> VerificationResult:
        return evaluate_pairs(
            self.objective.backbone,
            self.objective.input_spec,
            pair_set,
            flip=self.config.evaluation.flip,
            batch_size=self.config.evaluation.batch_size or default_batch_size(self.device),
            device=self.device,
            name=name,
        )
