"""Conversion of the models published by the paper's authors.

pickled      reads a pickle without executing it
untrusted    reads a PyTorch checkpoint without executing code
official     names, shapes and settings of the released layers → ours
importing    downloads, checks and converts a published model
"""
