"""``python -m experiments.translate`` that knows the families in tests/toys, in its processes too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import toys

from experiments import translate

toys.found()

if __name__ == "__main__":
    sys.exit(translate.main())
