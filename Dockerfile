# landprior on a CPU or an NVIDIA GPU.
#
#   docker build -t landprior .
#   docker run --rm -v "$PWD":/data --user "$(id -u):$(id -g)" landprior demo
#
# GPU: nothing else to install. On x86-64 Linux, torch from PyPI includes the CUDA libraries, so the host needs only its
# driver and the NVIDIA container runtime:
#
#   docker run --rm --gpus all -v "$PWD":/data --user "$(id -u):$(id -g)" landprior doctor
#
# Build arguments: PYTHON, the version of Python; TORCH, what pip installs first (another version or build of torch and
# torchvision, such as "torch==2.9.1 torchvision==0.24.1"); EXTRAS, "[cpu]" for OpenVINO, "[ray]", "[cpu,ray]".
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

# rasterio's wheels need the system's libexpat, which the slim image lacks
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libexpat1 \
    && rm -rf /var/lib/apt/lists/*

ARG TORCH="torch torchvision"
ARG EXTRAS=""
# TORCH holds several words on purpose, and the versions are the builder's choice
# hadolint ignore=SC2086,DL3013
RUN pip install --no-cache-dir ${TORCH}

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY configs ./configs
COPY landprior ./landprior
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".${EXTRAS}" && rm -rf /src

RUN useradd --create-home --uid 1000 landprior && install -d -o 1000 -g 1000 /data
USER 1000
# a user given with --user may have no name and no home here; the cache is in /data, so that downloads are kept
ENV HOME=/tmp USER=landprior LANDPRIOR_CACHE=/data/.landprior-cache
WORKDIR /data

HEALTHCHECK --interval=5m --timeout=60s CMD ["landprior", "doctor"]
ENTRYPOINT ["landprior"]
CMD ["--help"]
