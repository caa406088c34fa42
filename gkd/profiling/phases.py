"""The phases that the time of a step is divided into, in the order of the table.

The trainer and the objectives name the parts of a step with `gkd.core.scopes.scope`; what they call is turned into
phases here. A part's way back runs inside of the scope `backward` and is told apart by its operations.
"""

from __future__ import annotations

from collections.abc import Mapping

REST = "rest"
COMMUNICATION = "communication"
LAUNCH = "launch"
DATA = "data"
COPY = "copy"

# How each phase is named in the table.
PHASES = {
    DATA: "data wait",
    COPY: "copy",
    "augment": "augment",
    "teacher": "teacher",
    "teacher_head": "teacher's class scores",
    "student_forward": "student, forward",
    "student_backward": "student, backward",
    "head_forward": "head and margin, forward",
    "head_backward": "head and margin, backward",
    "distill_forward": "distillation loss, forward",
    "distill_backward": "distillation loss, backward",
    COMMUNICATION: "communication",
    "clip": "clip and finite check",
    "optimizer": "optimiser",
    LAUNCH: "GPU waits for the host",
    REST: "rest",
}

# All but the wait for data, the networks, the head and the losses: what the loop itself costs.
OWN_OVERHEAD = (COPY, "augment", COMMUNICATION, "clip", "optimizer", LAUNCH, REST)

# The phase of what happens in a scope, and of the way back of what was computed there.
PHASE_OF_SCOPE = {
    "data": DATA,
    "copy": COPY,
    "augment": "augment",
    "teacher": "teacher",
    "teacher head": "teacher_head",
    "student": "student_forward",
    "head": "head_forward",
    "distill": "distill_forward",
    "clip": "clip",
    "optimizer": "optimizer",
    "backward": REST,
    "": REST,
}
BACKWARD_OF_SCOPE = {"student": "student_backward", "head": "head_backward", "distill": "distill_backward"}

# What can bound a step, and the phases that belong to it.
BOUNDS = {
    "data": (DATA,),
    "copy": (COPY,),
    "augmentation": ("augment",),
    "teacher": ("teacher",),
    "student": ("student_forward", "student_backward"),
    "head": ("teacher_head", "head_forward", "head_backward"),
    "distillation loss": ("distill_forward", "distill_backward"),
    "communication": (COMMUNICATION,),
    "optimiser": ("clip", "optimizer"),
    "launches": (LAUNCH,),
    "loop": (REST,),
}


def shares_of_bounds(seconds: Mapping[str, float]) -> dict[str, float]:
    """What part of the step belongs to each possible bound, from the seconds of each phase."""
    total = sum(seconds.values()) or 1.0
    return {name: sum(seconds.get(phase, 0.0) for phase in phases) / total for name, phases in BOUNDS.items()}


def own_overhead(seconds: Mapping[str, float]) -> float:
    """The part of the step that is neither waiting for data nor networks, head or losses."""
    return sum(seconds.get(phase, 0.0) for phase in OWN_OVERHEAD) / (sum(seconds.values()) or 1.0)
