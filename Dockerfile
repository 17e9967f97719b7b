# pipeline serve in a container: see docs/web.md for how to run it (read-only root, a tmpfs for /tmp, an API key); and
# pipeline listen: see docs/hospital.md and docs/deploy/compose.yaml.
# Two steps, so that the image holds no build tools: the environment is made in the first and copied into the second.

FROM python:3.12-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY configs ./configs
COPY data ./data
COPY models ./models
COPY stages ./stages
COPY pipeline ./pipeline
# Byte for byte what the lock files name; then the project itself, without looking further.
RUN /opt/venv/bin/pip install --require-hashes --requirement configs/locks/tools.txt \
    && /opt/venv/bin/pip install --require-hashes --requirement configs/locks/image.txt \
    && /opt/venv/bin/pip install --no-deps --no-build-isolation . \
    && /opt/venv/bin/pip uninstall --yes uv wheel

FROM python:3.12-slim
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin cxr \
    && install -d -o cxr -g cxr -m 700 /results
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
# The key comes at run time, from CXR_API_KEY: without one the server does not start, because it listens to all.
ENTRYPOINT ["pipeline", "serve", "--host", "0.0.0.0", "--port", "8000"]
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import sys, urllib.request as u; sys.exit(u.urlopen('http://127.0.0.1:8000/healthz', timeout=4).status != 200)"]
STOPSIGNAL SIGTERM
