import os
import sys
from pathlib import Path

# Before torch starts: tiny models gain nothing from a second thread, and wait long for it where a core is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# tiny_model.py is shared by the tests of the model, of its training and of prediction.
sys.path.insert(0, str(Path(__file__).parent))
