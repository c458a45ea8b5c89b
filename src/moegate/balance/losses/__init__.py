"""Balance losses: pure functions of a ``Routing`` that return a scalar tensor.

They read one layer, count real tokens only, and are differentiable through the probabilities (or weights, or
logits) only: counts are constants. Without a single real token each is exactly 0 and still has a graph.

A new loss is a new file and one line here, its import; ``__all__`` follows from the imports.
"""

from moegate.balance.losses.entropies import marginal_entropy as marginal_entropy
from moegate.balance.losses.entropies import mutual_information as mutual_information
from moegate.balance.losses.entropies import token_entropy as token_entropy
from moegate.balance.losses.global_batch import LoadAccumulator as LoadAccumulator
from moegate.balance.losses.global_batch import global_load_balance as global_load_balance
from moegate.balance.losses.grouped import group_load_balance as group_load_balance
from moegate.balance.losses.logarithm import load_cross_entropy as load_cross_entropy
from moegate.balance.losses.logit_size import router_z as router_z
from moegate.balance.losses.pooled import pooled_load_balance as pooled_load_balance
from moegate.balance.losses.router_rows import row_cosine as row_cosine
from moegate.balance.losses.router_rows import row_orthogonality as row_orthogonality
from moegate.balance.losses.sequence import sequence_load_balance as sequence_load_balance
from moegate.balance.losses.shazeer import importance_cv as importance_cv
from moegate.balance.losses.shazeer import importance_load as importance_load
from moegate.balance.losses.shazeer import load_cv as load_cv
from moegate.balance.losses.shazeer import smooth_load as smooth_load
from moegate.balance.losses.switch import first_choice_load_balance as first_choice_load_balance
from moegate.balance.losses.switch import load_balance as load_balance

__all__ = sorted(  # noqa: PLE0605 - a list of names all the same
    name for name, imported in list(globals().items()) if callable(imported) and not name.startswith("_")
)
