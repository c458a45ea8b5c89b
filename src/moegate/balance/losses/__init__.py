"""Balance losses: pure functions of a ``Routing`` that return a scalar tensor.

They read one layer, count real tokens only, and are differentiable through the probabilities (or weights, or
logits) only: counts are constants. Without a single real token each is exactly 0 and still has a graph.
"""

from moegate.balance.losses.entropies import marginal_entropy, mutual_information, token_entropy
from moegate.balance.losses.global_batch import LoadAccumulator, global_load_balance
from moegate.balance.losses.grouped import group_load_balance
from moegate.balance.losses.logarithm import load_cross_entropy
from moegate.balance.losses.logit_size import router_z
from moegate.balance.losses.pooled import pooled_load_balance
from moegate.balance.losses.router_rows import row_cosine, row_orthogonality
from moegate.balance.losses.sequence import sequence_load_balance
from moegate.balance.losses.shazeer import importance_cv, importance_load, load_cv, smooth_load
from moegate.balance.losses.switch import first_choice_load_balance, load_balance

__all__ = [
    "LoadAccumulator",
    "first_choice_load_balance",
    "global_load_balance",
    "group_load_balance",
    "importance_cv",
    "importance_load",
    "load_balance",
    "load_cross_entropy",
    "load_cv",
    "marginal_entropy",
    "mutual_information",
    "pooled_load_balance",
    "router_z",
    "row_cosine",
    "row_orthogonality",
    "sequence_load_balance",
    "smooth_load",
    "token_entropy",
]
