"""Weights from files of other programs. No file is ever run: pickles may hold only tensors."""
