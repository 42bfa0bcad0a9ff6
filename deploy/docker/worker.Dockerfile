# The worker: one node of the cluster, with PyTorch and DeepSpeed. CPU by default:
#   docker build -f deploy/docker/worker.Dockerfile -t millionway/worker .
# CUDA 13 (Turing, sm_75, and newer):
#   ... --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
# V100 (Volta, sm_70): only the CUDA 12.6 wheels still carry it, up to PyTorch 2.14
# (PyTorch's RELEASE.md, "CUDA Support Matrix"; 2.15 is to drop them: github.com/pytorch/pytorch/issues/190385):
#   ... --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126
# InfiniBand: ... --build-arg APT_PACKAGES="ibverbs-providers libibverbs1 librdmacm1"
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE} AS worker

ARG APT_PACKAGES=""
RUN if [ -n "$APT_PACKAGES" ]; then \
      apt-get update && apt-get install -y --no-install-recommends $APT_PACKAGES && rm -rf /var/lib/apt/lists/*; \
    fi

# Another user than the API's, in its group: reads the worker's key, not the administrator's.
RUN groupadd --gid 10001 millionway \
 && useradd --uid 10002 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin worker \
 && install -d -o 10001 -g 10001 -m 0750 /keys \
 && install -d -o 10002 -g 10001 -m 0755 /runs /data

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/millionway

# PyTorch alone: it is by far the largest layer and the one that the build arguments change. Its index is asked for these two
# packages only; an empty TORCH_INDEX asks the default one.
COPY constraints.txt ./
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH_VERSION=""
ARG TORCHVISION_VERSION=""
RUN if [ -n "$TORCH_VERSION" ]; then sed -i "s/^torch==.*/torch==$TORCH_VERSION/" constraints.txt; fi \
 && if [ -n "$TORCHVISION_VERSION" ]; then sed -i "s/^torchvision==.*/torchvision==$TORCHVISION_VERSION/" constraints.txt; fi \
 && pip install --no-deps -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch torchvision
COPY pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*p['dependencies'], *p['optional-dependencies']['trainer'], sep='\n')" > /tmp/requirements \
 && pip install -c constraints.txt -r /tmp/requirements \
 && rm /tmp/requirements
COPY . .
RUN pip install --no-deps . && rm -rf api build deploy service trainer *.egg-info

# Kernels that PyTorch and DeepSpeed compile go to the temporary file system: the root is read-only.
ENV HOME=/tmp TORCH_EXTENSIONS_DIR=/tmp/torch-extensions TRITON_CACHE_DIR=/tmp/triton HF_HUB_OFFLINE=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10002:10001
WORKDIR /tmp
# No HEALTHCHECK: whether a worker lives is decided by its lease at the API, see GET /workers.
ENTRYPOINT ["python", "-m", "service.worker"]

# Writes the images of the demonstration into /data, for a first run without images of one's own.
FROM worker AS demo-data
USER root
RUN pip install -c /opt/millionway/constraints.txt scikit-learn
USER 10002:10001
ENTRYPOINT ["python", "-c", "import pathlib, deploy.demo_data; print(deploy.demo_data.write_digits(pathlib.Path('/data/digits')))"]

# What is built without --target.
FROM worker
