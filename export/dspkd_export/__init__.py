"""Turning a student into artifacts: ONNX models, ExecuTorch programs, LiteRT files, with proof of the same answers.

Needs torch; onnx and executorch are imported only by the target that uses them.
"""

from dspkd_export.export import TARGETS, check_request, export_student
from dspkd_export.verify import verify

__all__ = ["TARGETS", "check_request", "export_student", "verify"]
