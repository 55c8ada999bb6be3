"""The models that the paper's authors published, as folders of this library.

untrusted    reads a PyTorch checkpoint without executing anything in it
official     the released layers' names, shapes and settings → ours
importing    downloads, checks and converts a published model
"""
