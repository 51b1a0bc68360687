"""UnionCAM (Hu et al. 2024) and the family of CAMs, as Captum attributions.

Names are imported when they are first used, so that the command starts without torch.
``__init__.pyi`` lists them.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
