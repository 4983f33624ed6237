# The images of Casemate: targets auth, inference, datasets, tools and backup; and postgres, prometheus,
# collector and grafana, which add our configuration and our user to other people's images.
#
#   docker build --target auth --tag casemate/auth .
#
# Plain Dockerfile syntax: the classic builder and BuildKit both read it. Each final stage
# adds two layers to its base, what is installed and what is ours, and runs no command in it:
# a base without a shell will do. `deploy/images/pins.env`, written by `make pin-images`,
# holds the bases by digest.
ARG BUILDER=python:3.11-slim-bookworm
# The same minor version of Python: gcr.io/distroless/python3-debian12 is the other choice.
ARG RUNTIME=python:3.11-slim-bookworm
ARG POSTGRES=postgres:17-bookworm
ARG PROMETHEUS=prom/prometheus:v2.55.1
ARG COLLECTOR=otel/opentelemetry-collector-contrib:0.115.1
ARG GRAFANA=grafana/grafana:12.2.1

FROM ${BUILDER} AS builder
# Seconds since 1970 that every file is dated, 2020-01-01: the same source gives the same layers.
ARG SOURCE_DATE_EPOCH=1577836800
# More sets of requirements for each image: "aws" brings AWS KMS and S3.
ARG CAPABILITIES=""
ENV SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} \
    CAPABILITIES=${CAPABILITIES} \
    PYTHONHASHSEED=0 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY requirements requirements
RUN python3 -m venv /build && \
    /build/bin/python -m pip install --quiet --require-hashes --only-binary :all: --requirement requirements/build.txt
COPY deploy/images/builder /usr/local/bin

FROM builder AS library
COPY pyproject.toml README.md LICENSE ./
COPY src/casemate src/casemate
RUN /build/bin/python -m pip wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir /wheel .

FROM ${RUNTIME} AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.vendor="Casemate" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
# PYTHONSAFEPATH: the working directory is no place to import from. The cipher list leaves TLS 1.2 nothing.
ENV PATH=/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    PYTHONPATH=/app/packages:/app \
    PYTHONSAFEPATH=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONNOUSERSITE=1 \
    GRPC_SSL_CIPHER_SUITES=ECDHE-PSK-CHACHA20-POLY1305
STOPSIGNAL SIGTERM

FROM builder AS auth-built
RUN install-packages auth
COPY --from=library /wheel /wheel
COPY services services
RUN install-ours auth

FROM runtime AS auth
LABEL org.opencontainers.image.title="casemate-auth" \
    org.opencontainers.image.description="Casemate: tokens, grants, signers, the trust feed"
COPY --from=auth-built /installed/ /
COPY --from=auth-built /ours/ /
USER 65532:65532
EXPOSE 7401 7404 7411
HEALTHCHECK --interval=5s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python3", "-m", "casemate.cli", "health", "auth", "--identity", "/run/casemate/service"]
ENTRYPOINT ["python3", "-m", "services.auth"]

FROM builder AS datasets-built
RUN install-packages datasets
COPY --from=library /wheel /wheel
COPY services services
RUN install-ours datasets

FROM runtime AS datasets
LABEL org.opencontainers.image.title="casemate-datasets" \
    org.opencontainers.image.description="Casemate: signed datasets, sealed rows, the transparency log"
COPY --from=datasets-built /installed/ /
COPY --from=datasets-built /ours/ /
USER 65532:65532
EXPOSE 7403 7413
HEALTHCHECK --interval=5s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python3", "-m", "casemate.cli", "health", "datasets", "--identity", "/run/casemate/service"]
ENTRYPOINT ["python3", "-m", "services.datasets"]

FROM builder AS inference-built
RUN install-packages inference
COPY --from=library /wheel /wheel
COPY services services
RUN install-ours inference

FROM runtime AS inference
LABEL org.opencontainers.image.title="casemate-inference" \
    org.opencontainers.image.description="Casemate: signed models behind the Open Inference Protocol"
COPY --from=inference-built /installed/ /
COPY --from=inference-built /ours/ /
# Since 1.29 onnxruntime tells Microsoft about each model that it loads, unless told not to.
ENV ORT_DISABLE_TELEMETRY=1
USER 65532:65532
EXPOSE 7402 7412
HEALTHCHECK --interval=5s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python3", "-m", "casemate.cli", "health", "inference", "--identity", "/run/casemate/service"]
ENTRYPOINT ["python3", "-m", "services.inference"]

FROM builder AS tools-built
RUN install-packages tools
COPY --from=library /wheel /wheel
RUN install-ours tools

# The `casemate` command, for operators and for the small authority of a compose file. It serves nothing.
FROM runtime AS tools
LABEL org.opencontainers.image.title="casemate-tools" \
    org.opencontainers.image.description="Casemate: the command line"
COPY --from=tools-built /installed/ /
COPY --from=tools-built /ours/ /
USER 65532:65532
ENTRYPOINT ["python3", "-m", "casemate.cli"]

FROM builder AS backup-built
RUN install-packages auth datasets
COPY --from=library /wheel /wheel
COPY services services
RUN install-ours backup

FROM ${POSTGRES} AS client
COPY deploy/images/builder/install-client /usr/local/bin/
RUN install-client

# `casemate backup`, with PostgreSQL's own programs beside it. It serves nothing, and runs as long as one command.
FROM runtime AS backup
LABEL org.opencontainers.image.title="casemate-backup" \
    org.opencontainers.image.description="Casemate: back up, verify, restore"
COPY --from=client /client/ /
COPY --from=backup-built /installed/ /
COPY --from=backup-built /ours/ /
USER 65532:65532
ENTRYPOINT ["python3", "-m", "casemate.cli", "backup"]

# PostgreSQL with our start script: its own user, TLS 1.3, certificate and SCRAM or nothing.
FROM ${POSTGRES} AS postgres
LABEL org.opencontainers.image.title="casemate-postgres" \
    org.opencontainers.image.description="PostgreSQL that takes verified certificates and SCRAM together, over TLS 1.3 alone"
COPY deploy/compose/postgres/passwd /etc/passwd
COPY --chown=65532:65532 deploy/compose/empty/ /var/lib/casemate/state/
COPY deploy/compose/postgres/start deploy/compose/postgres/ready deploy/compose/postgres/roles.sql \
    deploy/compose/postgres/postgresql.conf deploy/compose/postgres/pg_hba.conf /casemate/
USER 65532:65532
STOPSIGNAL SIGTERM
EXPOSE 5432
HEALTHCHECK --interval=2s --timeout=10s --start-period=120s --retries=5 CMD ["/casemate/ready"]
ENTRYPOINT ["/casemate/start"]
CMD []

# Others' programs, with our configuration in them and as our user: nothing is mounted from a checkout.
FROM ${PROMETHEUS} AS prometheus
COPY --chown=65532:65532 deploy/compose/empty/ /var/lib/casemate/state/
COPY deploy/compose/observability/prometheus.yml deploy/compose/observability/rules.yml /etc/casemate/
USER 65532:65532
EXPOSE 9090
CMD ["--config.file=/etc/casemate/prometheus.yml", "--storage.tsdb.path=/var/lib/casemate/state/data", \
    "--storage.tsdb.retention.time=15d"]

FROM ${COLLECTOR} AS collector
COPY deploy/compose/observability/collector.yml /etc/casemate/
USER 65532:65532
EXPOSE 4317
CMD ["--config=/etc/casemate/collector.yml"]

FROM ${GRAFANA} AS grafana
COPY --chown=65532:65532 deploy/compose/empty/ /var/lib/casemate/state/
COPY deploy/compose/observability/grafana/ /etc/casemate/
USER 65532:65532
EXPOSE 3000
