"""Settings of PyTorch that its process keeps outside of any object: the difference from the defaults."""

import importlib
import sys
from typing import Any

from roost.runtime.kernel.naming import globals_of
from roost.runtime.kernel.process.base import Baseline

_CUDNN = {"enabled": True, "benchmark": False, "deterministic": False}
_HOSTS = ("cpu", "cuda")


def options(_base: Baseline, _shell: Any) -> Any:
    """What is not as in a new process."""
    torch: Any = sys.modules.get("torch")
    if torch is None or "autograd" not in globals_of(torch) or not hasattr(torch, "compile"):
        return None
    printing = torch._tensor_str.PRINT_OPTS
    fresh = vars(type(printing)())
    found = {
        "dtype": (_name(torch.get_default_dtype()), "float32"),
        "device": (str(torch.get_default_device()), "cpu"),
        "gradients": (torch.is_grad_enabled(), True),
        "inference": (torch.is_inference_mode_enabled(), False),
        "deterministic": (
            (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            (False, False),
        ),
        "products": (torch.get_float32_matmul_precision(), "highest"),
        "anomalies": (
            (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
            (False, True),
        ),
        "printing": ({k: v for k, v in vars(printing).items() if fresh.get(k, printing) != v}, {}),
        "cudnn": ({k: getattr(torch.backends.cudnn, k) for k in _CUDNN}, _CUDNN),
        "autocast": (_autocast(torch), {}),
        "current": (torch.cuda.current_device() if torch.cuda.is_initialized() else 0, 0),
    }
    return {name: now for name, (now, default) in found.items() if now != default} or None


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _autocast(torch: Any) -> dict[str, str]:
    """Devices for which a cell has entered ``torch.autocast``, with the kind of numbers."""
    return {
        where: _name(torch.get_autocast_dtype(where))
        for where in _HOSTS
        if torch.is_autocast_enabled(where)
    }


def set_options(value: dict[str, Any], _base: Baseline, _shell: Any) -> None:
    """Set them again; raises where a device is not here."""
    torch: Any = importlib.import_module("torch")
    ways: dict[str, Any] = {
        "dtype": lambda name: torch.set_default_dtype(getattr(torch, name)),
        "gradients": torch.set_grad_enabled,
        "inference": lambda on: torch.inference_mode(on).__enter__(),
        "deterministic": lambda on: torch.use_deterministic_algorithms(on[0], warn_only=on[1]),
        "products": torch.set_float32_matmul_precision,
        "anomalies": lambda on: torch.autograd.set_detect_anomaly(*on),
        "printing": vars(torch._tensor_str.PRINT_OPTS).update,
        "cudnn": lambda flags: _set_flags(torch.backends.cudnn, flags),
        "autocast": lambda devices: _cast(torch, devices),
        "device": torch.set_default_device,
        "current": torch.cuda.set_device,
    }
    for name, setting in value.items():
        ways[name](setting)


def _set_flags(backend: Any, flags: dict[str, bool]) -> None:
    for name, on in flags.items():
        setattr(backend, name, on)


def _cast(torch: Any, devices: dict[str, str]) -> None:
    for where, dtype in devices.items():
        torch.set_autocast_enabled(where, True)
        torch.set_autocast_dtype(where, getattr(torch, dtype))
        torch.autocast_increment_nesting()
