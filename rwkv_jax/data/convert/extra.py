"""What only the extra `convert` installs, asked for before any work is begun."""

import importlib.util

from rwkv_jax.data.records import DatasetError


def require(module: str, what: str) -> None:
    """Raises DatasetError where `module` is not installed, which `what` needs."""
    if importlib.util.find_spec(module) is None:
        raise DatasetError(
            f"{what} needs {module}, which is not installed: pip install -e '.[convert]'"
        )
