"""What somebody sees who imports the package and looks around."""

import importlib
import importlib.metadata
import inspect
import pkgutil
import subprocess
import sys

import pytest

import btnn_jax


def test_importing_the_package_imports_no_jax():
    program = (
        "import sys, btnn_jax; btnn_jax.__version__; dir(btnn_jax); print({'jax', 'flax'} & {*sys.modules})"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"


def test_every_name_of_the_face_is_there_and_is_found_by_completion():
    assert list(btnn_jax.__all__) == sorted(btnn_jax.__all__)
    for name in btnn_jax.__all__:
        assert getattr(btnn_jax, name) is not None
    assert set(btnn_jax.__all__) < set(dir(btnn_jax))
    assert inspect.isfunction(btnn_jax.losses.ppo_loss)
    assert btnn_jax.__version__ == importlib.metadata.version("btnn-jax")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'loses'"):
        _ = btnn_jax.loses


MODULES = [m.name for m in pkgutil.walk_packages(btnn_jax.__path__, "btnn_jax.") if "._" not in m.name]


@pytest.mark.parametrize("name", MODULES)
def test_all_names_the_public_names(name):
    if name.endswith("__main__"):
        return
    module = importlib.import_module(name)
    public = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and getattr(value, "__module__", None) == name
        and (inspect.isfunction(value) or inspect.isclass(value))
    }
    listed = getattr(module, "__all__", [])  # a package whose modules are imported one by one lists none
    assert public <= set(listed), f"missing in __all__: {public - set(listed)}"
    assert all(hasattr(module, key) for key in listed)
