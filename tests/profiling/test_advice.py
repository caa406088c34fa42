"""Every rule speaks where its part is large, never of what is set already, and bounds what can be gained."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gkd.profiling.advice import RULES, advise
from gkd.profiling.phases import BOUNDS, OWN_OVERHEAD, PHASES, own_overhead, shares_of_bounds
from gkd.profiling.setup import Setup

PLAIN = Setup(
    device="cuda",
    device_name="a GPU",
    num_cores=16,
    num_threads=1,
    num_ranks=1,
    batch_size=512,
    micro_batches=1,
    num_classes=85742,
    workers=4,
    decode="cpu",
    changes=(),
    head="softmax",
    precision="fp32",
    tf32=False,
    is_compiled=False,
    channels_last="auto",
    is_recomputing=False,
    teacher="live",
    teacher_precision="fp32",
    is_teacher_compiled=False,
    keeps_memory=False,
)


def said(bound: str, share: float = 0.5, **settings: object) -> str:
    """What is advised where `bound` takes `share` of the step and nothing else stands out."""
    phase = BOUNDS[bound][-1]
    seconds = {phase: share}
    # The rest goes evenly to phases whose rules speak from larger shares on.
    for other in ("student_forward", "head_forward", "teacher", "data", "copy", "augment", "distill_forward"):
        if other not in BOUNDS[bound]:
            seconds[other] = 0.0
    filler = "head_forward" if bound != "head" else "student_forward"
    seconds[filler] = 1.0 - share
    found = [one for one in advise(seconds, replace(PLAIN, **settings)) if one.bound == bound]
    return "\n".join(found[0].actions) if found else ""


def test_every_phase_belongs_to_one_bound_and_every_bound_has_a_rule():
    assert sorted(phase for phases in BOUNDS.values() for phase in phases) == sorted(PHASES)
    assert [rule.bound for rule in RULES] == list(BOUNDS)
    assert set(OWN_OVERHEAD) < set(PHASES)


def test_shares_sum_to_one_and_the_overhead_leaves_out_data_networks_and_losses():
    seconds = {phase: float(place + 1) for place, phase in enumerate(PHASES)}
    assert sum(shares_of_bounds(seconds).values()) == pytest.approx(1)
    counted = [name for name in PHASES if name.split("_")[0] not in ("data", "teacher", "student", "head", "distill")]
    assert own_overhead(seconds) == pytest.approx(sum(seconds[name] for name in counted) / sum(seconds.values()))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.bound)
def test_a_rule_speaks_from_its_share_on(rule):
    settings = {"changes": ("cutout",)}
    assert said(rule.bound, rule.least_share + 0.01, **settings)
    assert not said(rule.bound, rule.least_share - 0.01, **settings)


def test_the_gain_is_that_of_amdahls_law_and_the_largest_part_comes_first():
    found = advise({"teacher": 0.6, "student_forward": 0.4}, PLAIN)
    assert [one.bound for one in found] == ["teacher", "student"]
    assert found[0].most_gain == pytest.approx(2.5)
    assert found[1].most_gain == pytest.approx(1 / 0.6)


@pytest.mark.parametrize(
    ("bound", "settings", "wanted", "unwanted"),
    [
        ("data", {"workers": 0}, "data.workers=2", "data.workers=0"),
        ("data", {"workers": 4}, "data.workers=8", "share 16"),
        ("data", {"workers": 16}, "16 loading processes share 16 core(s)", "data.workers=32"),
        ("data", {}, "data.decode=gpu", ""),
        ("data", {"decode": "gpu"}, "disk", "data.decode"),
        ("data", {"device": "cpu"}, "disk", "data.decode"),
        ("copy", {}, "ulimit -l", ""),
        ("copy", {"decode": "gpu"}, "ulimit -l", "data.decode"),
        ("augmentation", {"changes": ("cutout", "jpeg")}, "cutout, jpeg", ""),
        ("teacher", {}, "teacher.cache={folder: PATH}:", "sees"),
        ("teacher", {"changes": ("cutout",)}, "teacher.sees=original", ""),
        ("teacher", {}, "teacher.precision=bf16", ""),
        ("teacher", {"teacher_precision": "bf16"}, "teacher.compile=true", "precision"),
        ("teacher", {"is_teacher_compiled": True}, "teacher.cache", "teacher.compile"),
        ("teacher", {"teacher": "kept"}, "disk", "teacher."),
        ("student", {}, "train.precision=bf16", "CPU"),
        ("student", {}, "train.tf32=true", ""),
        ("student", {"precision": "bf16"}, "train.compile=true", "train.precision"),
        ("student", {"tf32": True}, "train.precision=bf16", "tf32"),
        ("student", {"device": "cpu"}, "where the CPU has bf16", "tf32"),
        ("student", {"device": "cpu", "precision": "bf16"}, "train.precision=fp32: try it", "train.precision=bf16"),
        ("student", {"device": "cpu", "precision": "fp16"}, "fp16 is slow on a CPU", ""),
        ("student", {"is_compiled": True}, "train.precision", "train.compile"),
        ("student", {"channels_last": False}, "train.channels_last=true", ""),
        ("student", {"channels_last": True}, "train.compile", "channels_last"),
        ("student", {"is_recomputing": True}, "train.checkpoint_activations=false", ""),
        ("student", {"device": "cpu", "num_threads": 8}, "OMP_NUM_THREADS=16", ""),
        ("student", {"device": "cpu", "num_threads": 16}, "train.compile", "OMP_NUM_THREADS"),
        ("student", {"device": "cpu", "num_threads": 4, "num_ranks": 4}, "train.compile", "OMP_NUM_THREADS"),
        ("student", {"device": "cpu", "num_threads": 1, "num_ranks": 4}, "OMP_NUM_THREADS=4,", ""),
        ("head", {}, "head.name=partial_fc", "sharded"),
        ("head", {"num_ranks": 8}, "head.name=sharded", ""),
        ("head", {"num_ranks": 8, "head": "sharded"}, "head.name=partial_fc", "head.name=sharded"),
        ("head", {"head": "partial_fc"}, "head.sample_rate", "head.name"),
        ("distillation loss", {}, "head.name=partial_fc", "sharded"),
        ("distillation loss", {"num_ranks": 8}, "head.name=sharded", ""),
        ("distillation loss", {"head": "partial_fc"}, "head.sample_rate", "head.name"),
        ("communication", {"num_ranks": 8}, "train.batch_size (now 512)", ""),
        ("communication", {"head": "sharded"}, "network", "head.name"),
        ("optimiser", {}, "train.batch_size (now 512)", ""),
        ("optimiser", {"head": "partial_fc"}, "train.batch_size", "head.name"),
        ("launches", {}, "train.compile=true", "micro_batches"),
        ("launches", {"is_compiled": True}, "teacher.compile=true", "train.compile"),
        ("launches", {"teacher": "kept"}, "train.compile=true", "teacher.compile"),
        ("launches", {"micro_batches": 4}, "train.micro_batches (now 4)", ""),
        ("loop", {"micro_batches": 4}, "train.micro_batches (now 4)", ""),
        ("loop", {}, "train.log_every", "micro_batches"),
    ],
)
def test_what_a_rule_says(bound, settings, wanted, unwanted):
    text = said(bound, **settings)
    assert wanted in text
    assert not unwanted or unwanted not in text


def test_nothing_is_said_of_an_augmentation_that_only_mirrors_nor_of_copies_on_a_cpu():
    assert not said("augmentation")
    assert not said("copy", device="cpu")
