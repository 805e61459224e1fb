# The pagepool service as a container: docs/registry.md and deploy/README.md say how to run it.
# Both stages start from Debian's own image, so that the interpreter which the packages were built for is the
# one they run on.

FROM debian:bookworm-slim AS build

RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3 python3-venv
RUN python3 -m venv /opt/pagepool
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY client client
COPY service service
# Only wheels: nothing is compiled here, and no compiler is needed. Compiled bytecode is kept, because the
# user that runs the service cannot write it. pip stays behind: nothing is installed later.
RUN /opt/pagepool/bin/pip install --no-cache-dir --prefer-binary '.[service]' \
 && /opt/pagepool/bin/pip uninstall --yes --quiet pip setuptools

FROM debian:bookworm-slim

RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log
RUN groupadd --system --gid 10001 pagepool \
 && useradd --system --uid 10001 --gid pagepool --home-dir /var/lib/pagepool --shell /usr/sbin/nologin pagepool \
 && install --directory --owner=pagepool --group=pagepool --mode=0750 /var/lib/pagepool
COPY --from=build /opt/pagepool /opt/pagepool
ENV PATH=/opt/pagepool/bin:$PATH \
    PAGEPOOL_DATA=/var/lib/pagepool \
    PAGEPOOL_LISTEN=0.0.0.0:5000
USER pagepool
WORKDIR /var/lib/pagepool
VOLUME /var/lib/pagepool
EXPOSE 5000
# "Can the store be read", asked without curl; ends with a traceback, and not 0, if the answer is not 200.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python3", "-c", "import os; from http.client import HTTPConnection as C; c = C('127.0.0.1', int(os.environ['PAGEPOOL_LISTEN'].rpartition(':')[2]), timeout=4); c.request('GET', '/readyz'); assert c.getresponse().status == 200"]
# The service ends on SIGTERM, after the requests in flight.
STOPSIGNAL SIGTERM
ENTRYPOINT ["pagepool"]
CMD ["serve"]
