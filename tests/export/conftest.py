from lively import lively_artifacts, lively_images, lively_student

__all__ = ["lively_artifacts", "lively_images", "lively_student"]
