# docker build -t sgl-router .
# docker run -p 30000:30000 -v "$PWD/config.yaml:/etc/sgl-router/config.yaml:ro" sgl-router
#
# In the config: server.host 0.0.0.0, server.port 30000 (or set SGL_ROUTER_HEALTH_URL too), paths as they are in the
# container. The router takes up to shutdown_drain_secs + shutdown_grace_secs (65 s) to stop: docker stop -t 70.

ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
RUN python -m venv /opt/sgl-router
ENV PATH=/opt/sgl-router/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY . .
RUN pip install .

FROM ${PYTHON_IMAGE}
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/sgl-router --create-home sgl-router
COPY --from=build /opt/sgl-router /opt/sgl-router
# Tokenizers named by hub id are kept below HF_HOME: mount a volume there to download them once.
ENV PATH=/opt/sgl-router/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/var/lib/sgl-router/huggingface \
    SGL_ROUTER_HEALTH_URL=http://127.0.0.1:30000/healthz
USER 10001:10001
WORKDIR /var/lib/sgl-router
EXPOSE 30000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(os.environ['SGL_ROUTER_HEALTH_URL'], timeout=2)"]
ENTRYPOINT ["sgl-router"]
CMD ["--config", "/etc/sgl-router/config.yaml"]
