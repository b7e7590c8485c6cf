"""dspkd: distil a large skin-lesion classifier into a small one, export it with proof, measure it where it runs.

The core package. It imports neither `dspkd_export` nor `dspkd_bench`; those import it.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
