# syntax=docker/dockerfile:1
# One image for both commands, `inferd` and `inferd-gateway`:
#   docker build -t inferd .                                  CPU; give TORCH_INDEX where a plain torch is a CUDA build
#   docker build -t inferd:cuda --build-arg DEVICE=cuda .     CUDA
# See docs/deployment.md, which also says what was built and run.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS build
# A C++ compiler for the native CPU kernels; it stays in this stage.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends --yes g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/inferd
ENV PATH=/opt/inferd/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
ARG TORCH_SPEC=torch==2.13.0
ARG TORCH_INDEX=
# The version is in TORCH_SPEC.
# hadolint ignore=DL3013
RUN pip install "${TORCH_SPEC}" ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"}
WORKDIR /src
COPY . .
ARG DEVICE=cpu
RUN extras=server,gateway \
    && if [ "${DEVICE}" = cuda ]; then extras=${extras},cuda; fi \
    && pip install --constraint tools/constraints.txt ".[${extras}]"

# One stage for both devices: choosing a stage by a variable needs a default that some builders do not resolve.
# hadolint ignore=DL3006
FROM ${PYTHON_IMAGE} AS runtime
ARG DEVICE=cpu
# Triton compiles small launchers with a C compiler at run time. CUDA itself comes with torch's wheels.
# hadolint ignore=DL3008
RUN if [ "${DEVICE}" = cuda ]; then \
        apt-get update \
        && apt-get install --no-install-recommends --yes gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/*; \
    fi
RUN useradd --uid 10001 --user-group --create-home --home-dir /var/lib/inferd --shell /usr/sbin/nologin inferd
COPY --from=build /opt/inferd /opt/inferd
ENV PATH=/opt/inferd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/var/lib/inferd/cache \
    HF_HOME=/var/lib/inferd/cache/huggingface \
    INFERD_HOST=0.0.0.0 \
    INFERD_GATEWAY_HOST=0.0.0.0
USER 10001:10001
WORKDIR /var/lib/inferd
EXPOSE 8000 50051 9400
# The process is PID 1 and handles SIGTERM and its children itself: no init program in between.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=120s --retries=3 CMD ["inferd", "health"]
# Listening on every address needs a key: docker run -e INFERD_API_KEY=... (or INFERD_INSECURE=1 behind a private network).
CMD ["inferd", "up", "demo"]
