# RustyDB in a container.
#
#   docker build -t rustydb .
#   docker run -p 5432:5432 -v rustydb:/var/lib/rustydb -e RUSTYDB_PASSWORD=... rustydb
#
# Started as root (the default), the front end becomes the user `rustydb` and the engine `rustydb-engine`. Started under
# any other uid (`--user 1234`, runAsNonRoot), both run as that one. The RUN steps are plain shell: they can be run by
# hand in a Debian trixie root with Python.

FROM python:3.13-slim-trixie

# tini reaps what a killed engine leaves behind, as the first process must; libnss-wrapper gives PostgreSQL a user name
# where the uid has none (`--user 1234`).
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnss-wrapper tini \
    && rm -rf /var/lib/apt/lists/*

RUN groupadd --gid 10001 rustydb \
    && groupadd --gid 10002 rustydb-engine \
    && useradd --uid 10001 --gid rustydb --no-create-home --home-dir /var/lib/rustydb --shell /usr/sbin/nologin rustydb \
    && useradd --uid 10002 --gid rustydb-engine --no-create-home --home-dir /var/lib/rustydb --shell /usr/sbin/nologin rustydb-engine

WORKDIR /opt/rustydb

# What changes seldom comes first: the dependencies stay in the build cache when only our code changes.
COPY requirements.lock requirements-dev.lock pyproject.toml ./
COPY tools/setup_env.py tools/setup_env.py
RUN PIP_NO_CACHE_DIR=1 python3 tools/setup_env.py

COPY LICENSE README.md ./
COPY protocol protocol
COPY engine engine
COPY server server
COPY enterprise enterprise
COPY deploy/container/entrypoint /usr/local/bin/rustydb-entrypoint
RUN .venv/bin/python -m compileall -q protocol engine server enterprise \
    && chmod 0755 /usr/local/bin/rustydb-entrypoint \
    && ln -s /opt/rustydb/.venv/bin/rustydb /usr/local/bin/rustydb \
    && install -d -m 1777 /var/lib/rustydb

# Whoever runs the container makes its own `data` in the volume, which anybody may do, and nobody else gets in.
ENV RUSTYDB_DATA_DIR=/var/lib/rustydb/data \
    RUSTYDB_HOST=* \
    RUSTYDB_HTTP_HOST=* \
    PYTHONUNBUFFERED=1
VOLUME /var/lib/rustydb
EXPOSE 5432 8432
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s --retries=3 CMD ["rustydb", "status"]
ENTRYPOINT ["tini", "--", "rustydb-entrypoint"]
CMD ["serve"]
