"""What the public operators refuse, each in one line that names the argument and the shapes."""

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32)


def shapes(**arguments: tuple[Tensor, str]) -> dict[str, int]:
    """Bind every letter of the shape suffixes to one size: `shapes(x=(x_ND, "ND"), w=(w_ED, "ED"))`.

    Returns:
        The size of each letter.

    Raises:
        ValueError: a tensor has another number of dimensions, or a letter has two sizes.
    """
    sizes: dict[str, int] = {}
    owner: dict[str, str] = {}
    for name, (tensor, letters) in arguments.items():
        if tensor.ndim != len(letters):
            raise ValueError(f"{name} must be ({', '.join(letters)}), got {tuple(tensor.shape)}")
        for letter, size in zip(letters, tensor.shape, strict=True):
            if letter not in sizes:
                sizes[letter], owner[letter] = size, name
            elif sizes[letter] != size:
                known = f"{letter} = {sizes[letter]} as in {owner[letter]}"
                raise ValueError(f"{name} must be ({', '.join(letters)}) with {known}, got {tuple(tensor.shape)}")
    return sizes


def floats(lead: Tensor, **others: Tensor) -> None:
    """All of the same float type, on the device of `lead` (called x).

    Raises:
        TypeError: another type. ValueError: another device.
    """
    if lead.dtype not in FLOATS:
        raise TypeError(f"x must be of a float type, got {lead.dtype}")
    for name, tensor in others.items():
        if tensor.dtype != lead.dtype:
            raise TypeError(f"{name} must be {lead.dtype} like x, got {tensor.dtype}")
    same_device(lead, **others)


def same_device(lead: Tensor, **others: Tensor) -> None:
    """Raises ValueError if one of `others` is on another device than `lead`, called x."""
    for name, tensor in others.items():
        if tensor.device != lead.device:
            raise ValueError(f"{name} must be on {lead.device} like x, got {tensor.device}")


def index(name: str, tensor: Tensor) -> Tensor:
    """`tensor` as int64.

    Raises:
        TypeError: it is not an integer tensor.
    """
    if tensor.dtype not in INTEGERS:
        raise TypeError(f"{name} must be int64 or int32, got {tensor.dtype}")
    return tensor.long()


def choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError if `value` is not one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
