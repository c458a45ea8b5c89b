"""Selection families: one idea a file. A new family is a new file and a place in ``SELECTIONS``."""

from moegate.parts import family_of
from moegate.selection.candidates import Candidates, Selected, Selection
from moegate.selection.dense import Dense
from moegate.selection.entropy_k import EntropyK
from moegate.selection.expert_choice import ExpertChoice
from moegate.selection.grouped import GroupedTopK
from moegate.selection.hashing import Hash
from moegate.selection.random import Random
from moegate.selection.soft_slots import SoftSlots
from moegate.selection.threshold import Threshold
from moegate.selection.top_k import TopK
from moegate.selection.top_p import TopP

__all__ = [
    "SELECTIONS",
    "Candidates",
    "Dense",
    "EntropyK",
    "ExpertChoice",
    "GroupedTopK",
    "Hash",
    "Random",
    "Selected",
    "Selection",
    "SoftSlots",
    "Threshold",
    "TopK",
    "TopP",
]

SELECTIONS = family_of(TopK, GroupedTopK, TopP, EntropyK, Threshold, Hash, Random, ExpertChoice, Dense, SoftSlots)
"""Every selection family by its kind."""
