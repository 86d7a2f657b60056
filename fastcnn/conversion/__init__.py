"""Swaps the layers of an existing model for fastcnn's, and back."""

from fastcnn.conversion.convert import convert, revert

__all__ = ["convert", "revert"]
