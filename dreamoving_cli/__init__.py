"""dreamoving: a dance video, a face and a garment in; that person, so dressed, doing that dance, out.

Importing the package imports no torch.
"""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # imported by others, it has hints for programmers

__version__ = "0.1.0"
