"""An exported model, and the tokenizer that it came from."""

from exported import copy, folder, tokenizer

__all__ = ["copy", "folder", "tokenizer"]
