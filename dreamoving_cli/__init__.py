"""dreamoving: a dance video, a face and a garment in; that person, so dressed, doing that dance, out.

Importing the package imports no torch.
"""

__version__ = "0.1.0"
