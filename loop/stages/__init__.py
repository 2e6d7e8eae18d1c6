"""The stages of an iteration: each makes one file of records out of the files before it."""

from loop.stages.archiving import measure
from loop.stages.attacking import answer, attack
from loop.stages.critiquing import critique, fit_critic, revise, validate
from loop.stages.evaluating import evaluate, gate
from loop.stages.pairing import check_pairs, pair
from loop.stages.self_play import sharpen
from loop.stages.training import train

__all__ = [
    "answer",
    "attack",
    "check_pairs",
    "critique",
    "evaluate",
    "fit_critic",
    "gate",
    "measure",
    "pair",
    "revise",
    "sharpen",
    "train",
    "validate",
]
