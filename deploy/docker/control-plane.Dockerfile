# The control plane: the API and the command line, without PyTorch.
#   docker build -f deploy/docker/control-plane.Dockerfile -t millionway/control-plane .
# For a build that can be repeated exactly, give the base by digest: --build-arg PYTHON_IMAGE=python@sha256:...
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE}

# Volumes take the owner and the mode of these folders when they are first mounted. The group may read what both images need;
# the administrator's key is the API's alone.
RUN groupadd --gid 10001 millionway \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin millionway \
 && install -d -o 10001 -g 10001 -m 0750 /keys /secrets /state \
 && install -d -o 10002 -g 10001 -m 0755 /runs /data

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/millionway

# Two layers: what changes with a release of a dependency, and what changes with ours.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > /tmp/requirements \
 && pip install -c constraints.txt -r /tmp/requirements \
 && rm /tmp/requirements
COPY . .
RUN pip install --no-deps . && rm -rf api build deploy service trainer *.egg-info

USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["python", "-m", "api", "--host", "0.0.0.0", "--port", "8000"]
