# pagepool as a container, in each of its roles: the service (the default), the node, the commands, and programs that
# `import pagepool`. deploy/README.md says how to run them, and what each of them may do.
# Both stages start from Debian's own image, so that the interpreter which the packages were built for is the
# one they run on.

FROM debian:bookworm-slim AS build

RUN apt-get update \
 && apt-get install --yes --no-install-recommends binutils ca-certificates python3 python3-venv
RUN python3 -m venv --without-pip /opt/pagepool && python3 -m venv /pip
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY service service
# pip stays behind: nothing is installed later. So do the symbols of compiled modules, half of all there is, and a second
# compiled module of zstandard, for other interpreters. Compiled bytecode is kept, because the users that run this cannot
# write it; the line numbers in it are those of the sources.
ARG EXTRAS=service
RUN /pip/bin/pip --python /opt/pagepool/bin/python install --no-cache-dir --prefer-binary ".[$EXTRAS]" \
 && find /opt/pagepool -name '*.so' -exec strip --strip-unneeded {} + \
 && rm -f /opt/pagepool/lib/python3.11/site-packages/zstandard/_cffi*.so
COPY deploy/health.py /opt/pagepool/health.py

FROM debian:bookworm-slim

RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-minimal libpython3-stdlib fuse3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
# One user for the service, whose files nobody else writes, and one for those who only use it. /var/cache/pagepool is
# where a service and programs of other containers share its cache, if they are given a volume there.
RUN groupadd --system --gid 10001 pagepool \
 && useradd --system --uid 10001 --gid pagepool --home-dir /var/lib/pagepool --shell /usr/sbin/nologin pagepool \
 && groupadd --system --gid 10002 pagepool-client \
 && useradd --system --uid 10002 --gid pagepool-client --home-dir /home/pagepool --shell /usr/sbin/nologin pagepool-client \
 && install --directory --owner=pagepool --group=pagepool --mode=0750 /var/lib/pagepool \
 && install --directory --owner=pagepool --group=pagepool --mode=0755 /var/cache/pagepool \
 && install --directory --owner=pagepool-client --group=pagepool-client --mode=0750 /home/pagepool /home/pagepool/reports
COPY --from=build /opt/pagepool /opt/pagepool
ENV PATH=/opt/pagepool/bin:$PATH \
    PAGEPOOL_DATA=/var/lib/pagepool \
    PAGEPOOL_LISTEN=0.0.0.0:5000
# By number: Kubernetes knows of no name whether it is root (runAsNonRoot).
USER 10001
WORKDIR /var/lib/pagepool
# No VOLUME: a client has no use for one. A service keeps its data in /var/lib/pagepool: give it a volume there.
EXPOSE 5000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 CMD ["python3", "/opt/pagepool/health.py"]
# Service and node end on SIGTERM, the service after the requests in flight.
STOPSIGNAL SIGTERM
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="pagepool" \
      org.opencontainers.image.description="A content-addressed container image store with a deduplicated read cache" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.documentation="docs/README.md" \
      org.opencontainers.image.base.name="docker.io/library/debian:bookworm-slim"
ENTRYPOINT ["pagepool"]
CMD ["serve"]
