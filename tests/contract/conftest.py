"""Lets the tests of the contract import their oracle and strategies, which lie beside them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
