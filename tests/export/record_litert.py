"""Make tests/export/data/shufflenet-*.tflite anew, with a Python that has litert-torch.

DSPKD_LITERT_PYTHON=PYTHON python tests/export/record_litert.py

They are what the converter makes of `recorded_student`, so that the tests need no converter: only LiteRT itself.
"""

import sys
import tempfile
from pathlib import Path

DATA = Path(__file__).with_name("data")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from small_shufflenet import CALIBRATED, recorded_student, recording_job  # noqa: E402

from dspkd_export.litert_target import MODEL_FILE, compile_litert  # noqa: E402

if __name__ == "__main__":
    student = recorded_student()
    for precision in ("fp32", "int8"):
        with tempfile.TemporaryDirectory() as folder:
            compile_litert(recording_job(student, Path(folder), precision, CALIBRATED))
            (DATA / f"shufflenet-{precision}.tflite").write_bytes((Path(folder) / MODEL_FILE).read_bytes())
