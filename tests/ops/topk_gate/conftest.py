"""Lets these tests import their oracle and their cases, which lie beside them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
