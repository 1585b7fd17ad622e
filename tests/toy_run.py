"""``python -m experiments.run`` that knows the families in tests/toys: python tests/toy_run.py ARGUMENTS."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import toys

from experiments import run

if __name__ == "__main__":
    toys.found()
    sys.exit(run.main())
