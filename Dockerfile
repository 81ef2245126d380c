# pid_jax in a container. No one has built these images yet: please report what fails.
#
#   docker build --tag pid_jax .                       # CPU
#   docker build --tag pid_jax:cuda --target cuda .    # NVIDIA GPU
#   docker run --rm --volume "$PWD:/work" pid_jax train --config=configs/quickstart.py --workdir=run
#   docker run --rm --gpus all --volume "$PWD:/work" pid_jax:cuda predict --help
#
# JAX's CUDA wheels bring CUDA's libraries with them. The host needs NVIDIA's driver and container toolkit.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS base
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /source
# Dependencies come first: a change of the sources does not install them again.
COPY requirements.txt ./
RUN pip install --requirement requirements.txt
COPY pyproject.toml setup.py README.md LICENSE requirements-*.txt ./
COPY pid_jax pid_jax
COPY configs configs

FROM base AS cuda
RUN pip install ".[cuda]" && rm -r /source
WORKDIR /work
ENTRYPOINT ["pid-jax"]

FROM base AS cpu
RUN pip install . && rm -r /source
WORKDIR /work
ENTRYPOINT ["pid-jax"]
