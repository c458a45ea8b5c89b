"""Lets the tests of the operators import their goldens and inputs, which lie beside them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
