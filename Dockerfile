# raydelta in a container. `docker run` without arguments runs the main job; any command of raydelta can follow.
#
#   docker build -t raydelta .
#   docker run --rm --shm-size=4g -v "$PWD/runs:/srv/runs" raydelta                 # CPU
#   docker run --rm --shm-size=4g -v "$PWD/runs:/srv/runs" --gpus all raydelta      # GPUs
#
# PyPI's torch for Linux holds CUDA and works without a GPU too. For a smaller image without CUDA, or for another CUDA,
# name PyTorch's package index for it: --build-arg TORCH_WHEELS=ADDRESS
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

ARG TORCH_WHEELS=""
# PYTHONUNBUFFERED: progress appears as it comes. NVIDIA_*: what the container toolkit passes in with --gpus.
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /build
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY raydelta raydelta
RUN PIP_EXTRA_INDEX_URL="${TORCH_WHEELS}" pip install -c constraints.txt '.[export,video]' && rm -rf /build/*

# Not root; uid 1000 is usually the one that owns the mounted folder.
RUN useradd --create-home --uid 1000 raydelta && mkdir -p /srv/runs && chown -R raydelta /srv
USER raydelta
WORKDIR /srv
VOLUME /srv/runs
ENTRYPOINT ["raydelta"]
CMD ["tune"]
