"""dspkd: distil a large skin-lesion classifier into a small one, export it with proof, measure it where it runs.

The core package. It imports neither `dspkd_export` nor `dspkd_bench`; those import it.
"""

import os

# ONNX Runtime reads this when it is imported, which export, runtimes and bench each do. Nothing of ours reports to
# anyone unless the user asks for it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

__all__ = ["__version__"]
