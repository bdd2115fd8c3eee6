"""Every event of a run, with the fields that its readers rely on, and the words that those hold."""

from __future__ import annotations

import re
from collections.abc import Mapping

from larpo.errors import LarpoError

# Event -> the fields that every record of it carries beside its metrics.
EVENTS: Mapping[str, tuple[str, ...]] = {
    "start": ("resumed",),  # written by Telemetry when it opens; once more at each resume
    "prompts": (),  # how many there are, once a session
    "step": ("step", "iteration", "epoch"),
    "lists": ("iteration",),  # one part of an iteration's lists
    "iteration": ("iteration",),  # the end of an iteration
    # One label a policy; `iteration`, where given, counts the iterations behind it, `step` is that of a snapshot.
    "evaluation": ("label",),
    "weights": (),
    "flow": ("iteration",),  # every few seconds: what waits, what is made a second, and who works
    "sampler": ("sampler",),  # the same of one sampler
    "pool": ("wanted", "reason"),  # the pool of samplers is to have so many from now on
    "span": ("actor", "kind", "start", "end"),  # what an actor did, in unix seconds
    "alarm": ("message",),
    "failure": ("actor", "kind", "reason"),
    "done": (),  # which policy was `taken`, the `last` one's numbers, and why the run `stopped` early, if it did
}
SPAN_KINDS = ("start", "sample", "rank", "train", "publish", "checkpoint", "update", "evaluate", "sleep", "wait")
FAILURE_KINDS: Mapping[str, str] = {
    "sampler": "a sampler ended, or its engine did",
    "reward": "a reward actor ended, or could not rank",
    "trainer": "a rank of the trainer ended",
    "stream": "the stream of lists ended",
    "store": "the store of weights ended",
    "node": "a machine went away, and the actor with it",
    "lease": "a sampler did not answer within samplers.lease_s",
    "weights": "a sampler did not take new weights within timeouts.weights_s",
    "other": "anything else",
}


_SIGNS = (  # in the first line of a reason: the knob whose limit was passed, or words for a node that is gone
    ("lease", re.compile(r"samplers\.lease_s")),
    ("weights", re.compile(r"timeouts\.weights_s")),
    ("node", re.compile(r"(?i)\bnode (has died|is dead|was terminated|\w+ (does not answer|is gone))|NODE_DIED")),
)


def failure_kind(actor: str, reason: str = "") -> str:
    """The kind of a failure: what its reason tells, else which actor had it.

    >>> failure_kind("sampler-12", "its process ended (SYSTEM_ERROR)"), failure_kind("sampler-1", "Its node has died.")
    ('sampler', 'node')
    >>> failure_kind("sampler-1", "its node 07f4d60a267e does not answer; it last held 2.5 GiB of memory")
    'node'
    >>> failure_kind("reward-cache"), failure_kind("shutdown")
    ('reward', 'other')
    """
    first = reason.partition("\n")[0]
    group = actor.split("-")[0]
    return next((kind for kind, sign in _SIGNS if sign.search(first)), group if group in FAILURE_KINDS else "other")


def check_event(event: str, fields: Mapping[str, object]) -> None:
    """Raise on an unknown event, or one that lacks a field its readers rely on."""
    if event not in EVENTS:
        raise LarpoError(f"event {event!r} is not one of {', '.join(EVENTS)}; declare it in larpo/events.py")
    needed = EVENTS[event]
    missing = [name for name in needed if name not in fields]
    if missing:
        raise LarpoError(f"event {event!r} lacks the field {missing[0]!r}; it carries {', '.join(needed)}")
    if event == "span" and fields["kind"] not in SPAN_KINDS:
        raise LarpoError(f"span kind {fields['kind']!r} is not one of {', '.join(SPAN_KINDS)}")
    if event == "failure" and fields["kind"] not in FAILURE_KINDS:
        raise LarpoError(f"failure kind {fields['kind']!r} is not one of {', '.join(FAILURE_KINDS)}")
