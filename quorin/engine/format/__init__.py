"""What is written down and must not change: every byte of a segment, its name, the hash, and the words of the
kernels.
"""
