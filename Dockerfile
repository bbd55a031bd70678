# landprior on a CPU or an NVIDIA GPU.
#
#   docker build -t landprior .
#   docker run --rm -v "$PWD":/data --user "$(id -u):$(id -g)" landprior demo
#
# GPU: nothing else to install. On x86-64 Linux pip's torch carries the CUDA libraries, so the host needs only its driver
# and the NVIDIA container runtime:
#
#   docker run --rm --gpus all -v "$PWD":/data --user "$(id -u):$(id -g)" landprior doctor
FROM python:3.11-slim

# rasterio's wheels need libexpat from the system, and the slim image has none
RUN apt-get update \
    && apt-get install -y --no-install-recommends libexpat1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY configs ./configs
COPY landprior ./landprior
RUN pip install --no-cache-dir . && rm -rf /src

RUN useradd --create-home landprior && install -d -o landprior -g landprior /data
USER landprior
# a user id given with --user may have no name and no home here; downloads outlive the container
ENV HOME=/tmp USER=landprior LANDPRIOR_CACHE=/data/.landprior-cache
WORKDIR /data

ENTRYPOINT ["landprior"]
CMD ["--help"]
