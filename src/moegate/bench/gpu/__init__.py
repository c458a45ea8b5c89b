"""``moegate bench --device cuda``: check, then time on a GPU, in one sitting that nothing can spoil.

``card.py`` is the only file that speaks to CUDA. ``sitting.py`` runs each suite in a process of its own, so that a
peer that crashes, hangs or spoils the card costs its own time and nobody else's. ``entries.py`` says what is measured
and in which order, ``checks/`` what must hold before any time counts. Nothing here needs more than PyTorch and Triton.
"""

__all__: list[str] = []
