"""What to turn where a part of the step is large: a table of rules.

A rule speaks only where its part takes at least its share of the step, and never of what is set already. The gain that
it names is the most there can be, were that part free (Amdahl's law): 1 / (1 - share).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gkd.profiling.phases import shares_of_bounds
from gkd.profiling.setup import Setup


@dataclass(frozen=True)
class Advice:
    """What bounds the step, its share, the most that can be gained, and what can be done, the likeliest first."""

    bound: str
    share: float
    most_gain: float
    actions: tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """For one bound: from which share on it speaks, and what it says of a setup."""

    bound: str
    least_share: float
    actions: Callable[[Setup], Iterable[str]]


def advise(seconds: Mapping[str, float], setup: Setup) -> list[Advice]:
    """The advice for a step that takes `seconds` by phase, the largest part first."""
    shares = shares_of_bounds(seconds)
    found = []
    for rule in RULES:
        share = shares[rule.bound]
        actions = tuple(rule.actions(setup)) if share >= rule.least_share else ()
        if actions:
            found.append(Advice(rule.bound, share, 1 / max(1 - share, 1e-3), actions))
    return sorted(found, key=lambda one: -one.share)


def _data(setup: Setup) -> Iterator[str]:
    if setup.workers == 0:
        yield "data.workers=2 or more: now the loop itself reads and decodes, and does nothing else meanwhile"
    elif setup.workers * setup.num_ranks < setup.num_cores:
        yield (
            f"data.workers={min(2 * setup.workers, max(setup.num_cores // setup.num_ranks, setup.workers + 1))}: it is "
            f"{setup.workers} for each of {setup.num_ranks} rank(s), and {setup.num_cores} cores are here"
        )
    else:
        yield (
            f"fewer data.workers or a machine with more cores: {setup.workers * setup.num_ranks} loading processes "
            f"share {setup.num_cores} core(s) with the loop"
        )
    if setup.device == "cuda" and setup.decode != "gpu":
        yield "data.decode=gpu: the GPU decodes the JPEGs, whose pixels then differ by a grey level or so"
    yield "a faster disk, or data that fit into memory: run it twice, and see whether the second time is faster"


def _copy(setup: Setup) -> Iterator[str]:
    if setup.device == "cuda":
        yield (
            "more locked memory (ulimit -l), where the log says that the loader's memory cannot be locked: copies wait "
            "for the processor then"
        )
        if setup.decode != "gpu":
            yield "data.decode=gpu: encoded images are a tenth as large"


def _augmentation(setup: Setup) -> Iterator[str]:
    if setup.changes:
        yield f"fewer changes in data.augment, or cheaper ones: now {', '.join(setup.changes)} (benchmarks/augment.py)"


def _teacher(setup: Setup) -> Iterator[str]:
    if setup.teacher == "kept":
        yield "the folder of the kept embeddings on a faster disk, or more memory for the system to hold it in"
        return
    if setup.changes:
        yield (
            "teacher.cache={folder: PATH} with teacher.sees=original: its embeddings are computed once; it then does "
            f"not see {', '.join(setup.changes)}, which the student does"
        )
    else:
        yield "teacher.cache={folder: PATH}: its embeddings are computed once and read from then on"
    if setup.teacher_precision == "fp32":
        yield "teacher.precision=bf16"
    if not setup.is_teacher_compiled:
        yield "teacher.compile=true"


def _student(setup: Setup) -> Iterator[str]:
    yield from _precision(setup)
    if not setup.is_compiled:
        yield "train.compile=true"
    if not setup.channels_last:
        yield "train.channels_last=true: it is off"
    if setup.is_recomputing:
        yield "train.checkpoint_activations=false, where memory allows: now every block is computed twice"
    if setup.device == "cpu" and setup.num_threads * setup.num_ranks < setup.num_cores:
        each = setup.num_cores // setup.num_ranks
        busy = setup.num_threads * setup.num_ranks
        yield f"OMP_NUM_THREADS={each}, if nothing else computes there: {busy} of {setup.num_cores} cores do now"


def _precision(setup: Setup) -> Iterator[str]:
    if setup.device == "cuda":
        if setup.precision == "fp32":
            yield "train.precision=bf16"
            if not setup.tf32:
                yield "train.tf32=true, to stay in fp32"
    elif setup.precision == "fp32":
        yield "train.precision=bf16, where the CPU has bf16 arithmetic: try it, for narrow networks are slower in it"
    elif setup.precision == "bf16":
        yield "train.precision=fp32: try it, for narrow networks are faster in it on a CPU"
    else:
        yield "train.precision=fp32 or bf16: fp16 is slow on a CPU"


def _head(setup: Setup) -> Iterator[str]:
    if setup.head == "partial_fc":
        yield "a lower head.sample_rate: fewer classes take part in a step"
        return
    if setup.head == "softmax" and setup.num_ranks > 1:
        yield "head.name=sharded: every rank computes its own classes only, with the same result"
    yield (
        f"head.name=partial_fc: a tenth of the {setup.num_classes:,} classes takes part in a step; the loss is another "
        "one then"
    )


def _loss(setup: Setup) -> Iterator[str]:
    if setup.head == "partial_fc":
        yield "a lower head.sample_rate: the loss is over the classes that take part"
        return
    if setup.head == "softmax" and setup.num_ranks > 1:
        yield "head.name=sharded, where the loss is gkd: every rank computes its own classes only"
    yield "head.name=partial_fc, where the loss is gkd: it is over the classes that take part in a step, a tenth"
    yield "fewer `distill` terms, or the grouping top_k, which is the faster one"


def _communication(setup: Setup) -> Iterator[str]:
    yield f"a larger train.batch_size (now {setup.batch_size}), with optim.lr to fit: as much is sent for more images"
    if setup.head == "softmax":
        yield f"head.name=sharded: gradients of {setup.num_classes:,} classes are not sent any more"
    yield "a faster network between the ranks, or fewer of them; compare the ranks' own times below: one may be slow"


def _optimiser(setup: Setup) -> Iterator[str]:
    yield f"a larger train.batch_size (now {setup.batch_size}), with optim.lr to fit: fewer updates for as many images"
    if setup.head != "partial_fc":
        yield f"head.name=partial_fc: only class weights that took part move, a tenth of {setup.num_classes:,}"


def _launches(setup: Setup) -> Iterator[str]:
    if not setup.is_compiled:
        yield "train.compile=true: fewer and larger kernels"
    if setup.teacher == "live" and not setup.is_teacher_compiled:
        yield "teacher.compile=true"
    if setup.micro_batches > 1:
        yield f"fewer train.micro_batches (now {setup.micro_batches}): larger kernels for as many launches"
    yield f"a larger train.batch_size (now {setup.batch_size} on {setup.num_ranks} rank(s)), with optim.lr to fit"


def _loop(setup: Setup) -> Iterator[str]:
    if setup.micro_batches > 1:
        yield f"fewer train.micro_batches (now {setup.micro_batches})"
    yield "a larger train.log_every, where lines come faster than one a second, and log.images_every, where pictures do"
    yield f"a larger train.batch_size (now {setup.batch_size}): the loop costs the same for each step"


RULES: Sequence[Rule] = (
    Rule("data", 0.10, _data),
    Rule("copy", 0.10, _copy),
    Rule("augmentation", 0.10, _augmentation),
    Rule("teacher", 0.15, _teacher),
    Rule("student", 0.30, _student),
    Rule("head", 0.20, _head),
    Rule("distillation loss", 0.15, _loss),
    Rule("communication", 0.10, _communication),
    Rule("optimiser", 0.10, _optimiser),
    Rule("launches", 0.15, _launches),
    Rule("loop", 0.05, _loop),
)
