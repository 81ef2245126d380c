"""The packages of the wheel; all other settings are in pyproject.toml.

`packages.find` in pyproject.toml cannot add a folder under another name. The wheel has the folder
`configs/` as the package `pid_jax.configs`.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["pid_jax", "pid_jax.*"]), "pid_jax.configs"],
    package_dir={"pid_jax.configs": "configs"},
)
