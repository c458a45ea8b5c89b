"""Selection families: one idea a file. A new family is a new file and one line here, its import.

``SELECTIONS`` and ``__all__`` follow from the imports.
"""

from moegate.parts import family_of
from moegate.selection.candidates import Candidates as Candidates
from moegate.selection.candidates import Selected as Selected
from moegate.selection.candidates import Selection as Selection
from moegate.selection.dense import Dense as Dense
from moegate.selection.entropy_k import EntropyK as EntropyK
from moegate.selection.expert_choice import ExpertChoice as ExpertChoice
from moegate.selection.grouped import GroupedTopK as GroupedTopK
from moegate.selection.hashing import Hash as Hash
from moegate.selection.product_keys import ProductKeyTopK as ProductKeyTopK
from moegate.selection.random import Random as Random
from moegate.selection.second_choice import SecondChoice as SecondChoice
from moegate.selection.soft_slots import SoftSlots as SoftSlots
from moegate.selection.sparse_mixer import SparseMixer as SparseMixer
from moegate.selection.threshold import Threshold as Threshold
from moegate.selection.top_k import TopK as TopK
from moegate.selection.top_p import TopP as TopP

SELECTIONS = family_of(
    *(
        imported
        for imported in list(globals().values())
        if isinstance(imported, type) and issubclass(imported, Selection) and imported is not Selection
    )
)
"""Every selection family by its kind."""

__all__ = ["SELECTIONS", "Candidates", "Selected", "Selection"]
__all__ += [family.__name__ for family in SELECTIONS.values()]
