# The service as one image: a builder makes a virtual environment, the final stage takes only that.
#
# Run it with a read-only root file system, no capabilities and a small memory volume on /tmp;
# what must survive a restart is in /var/lib/partner-bridge.
#
# The base is pinned by the digest of its index for all architectures, so that it never changes unseen. For Debian's
# later fixes a release names a newer one, --build-arg BASE=python:3.13-slim-bookworm@sha256:…, which
# `docker buildx imagetools inspect python:3.13-slim-bookworm` tells. Tests need no registry: they build on a plain
# Debian with Python, or on what BRIDGE_TEST_BASE names, such as this base.
#
# Own marshmallow classes come by an image FROM this one; the README, under "On Kubernetes", has it.
ARG BASE=python:3.13.15-slim-bookworm@sha256:ed86c82274b3c69b52fb5820f358f0bd7df0b603332063cb5c6e32bd220c3e6e

FROM ${BASE} AS builder
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ONLY_BINARY=:all:
WORKDIR /src

# gunicorn's parser in C, the extra `fast`, comes as source only. A base without the headers of its Python, unlike the
# one above, needs python3-dev too. The compiler is Debian's latest: it leaves nothing but the module.
ARG COMPILER="gcc libc6-dev"
# hadolint ignore=DL3008,SC2086
RUN apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends ${COMPILER} \
 && rm -rf /var/lib/apt/lists/*

# Two environments: pip and the build back ends stay in /build, which the final stage never sees.
# Every file that comes from an index is checked against .lock (written by .lock/update).
COPY .lock/ .lock/
RUN python3 -m venv /build \
 && /build/bin/pip install --require-hashes --requirement .lock/build.txt \
 && /build/bin/pip wheel --require-hashes --no-deps --no-build-isolation --no-binary gunicorn-h1c \
      --wheel-dir /dist --requirement .lock/fast.txt \
 && python3 -m venv --without-pip /opt/partner-bridge \
 && /build/bin/pip --python /opt/partner-bridge/bin/python install \
      --require-hashes --no-compile --requirement .lock/requirements.txt

# Bytecode is compiled now, as the root is read-only later; unchecked, as the sources never change.
COPY pyproject.toml README.md LICENSE ./
COPY bridge/ bridge/
RUN /build/bin/pip wheel --no-index --no-deps --no-build-isolation --wheel-dir /dist . \
 && /build/bin/pip --python /opt/partner-bridge/bin/python install \
      --no-index --no-deps --no-compile /dist/*.whl \
 && /opt/partner-bridge/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/partner-bridge/lib


FROM ${BASE}
RUN groupadd --gid 10001 bridge \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin bridge \
 && install -d -o 10001 -g 10001 -m 0750 /var/lib/partner-bridge
COPY --from=builder /opt/partner-bridge /opt/partner-bridge

# Probes and scrapers come from outside the container, so the admin port listens on all interfaces;
# without an admin token it then answers health, metrics and status only.
ENV PATH=/opt/partner-bridge/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    BRIDGE_CONFIG=/etc/partner-bridge/bridge.yaml \
    BRIDGE_ADMIN_BIND=0.0.0.0:9090

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="partner-bridge" \
      org.opencontainers.image.description="Webhooks in, HubSpot batch updates out, in order and within the limits: nothing accepted is lost." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

USER 10001:10001
WORKDIR /var/lib/partner-bridge
VOLUME /var/lib/partner-bridge
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
ENTRYPOINT ["partner-bridge"]
CMD ["serve"]
