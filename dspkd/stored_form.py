"""Models whose stored form, and every hash of it, stays as it was when they come to know another key."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

__all__ = ["StoredForm"]


class StoredForm(BaseModel):
    """A model that leaves the keys in `unused_keys` out of what it writes: files without them are read as before,
    recipes and caches keep their names, and an older dspkd reads what does not need the newer one.
    """

    later_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys that are left out while they have their defaults."""

    def unused_keys(self) -> frozenset[str]:
        fields = type(self).model_fields
        return frozenset(key for key in self.later_keys if getattr(self, key) == fields[key].default)

    @model_serializer(mode="wrap")
    def _stored(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        unused = self.unused_keys()
        return {key: value for key, value in handler(self).items() if key not in unused}
