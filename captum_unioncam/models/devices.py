"""Devices of torch by name."""

import torch

from captum_unioncam.errors import ConfigError, one_line


def resolve_device(name: str | None) -> torch.device:
    """Returns the device of a name, once a tensor has been put there.

    Args:
        name (str or None): None is cuda where there is one, else cpu.

    Raises:
        ConfigError: If there is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception as error:  # each kind of device has its own
        raise ConfigError(
            f"`device` {name} cannot be used: {one_line(error)}"
        ) from error
    return device
