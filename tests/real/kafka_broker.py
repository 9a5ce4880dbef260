"""A real Apache Kafka of one node (KRaft) for tests, with every kind of listener.

`KAFKA_HOME` (an unpacked Kafka, or any directory with its jars in libs/) is used where it is set;
else the jars come from Maven by kafka/pom.xml, once. `KAFKA_BOOTSTRAP` names a running broker
instead: then only the tests run that need neither its listeners nor its restart.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import attrs
import trio

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
JARS = ROOT / ".venv" / "kafka-libs"
FETCH_LIMIT = 300.0
START_LIMIT = 60.0
STOP_LIMIT = 30.0
GIVEN = "KAFKA_BOOTSTRAP"
CLUSTER_ID = "Y2x1c3Rlcm5vZGUtdGVzdA"
USERS = {"alice": "alice-secret", "bob": "bob-secret"}
JAVA_OPTIONS = (
    "-Xms128m",
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Djava.awt.headless=true",
)
LOG4J = """\
log4j.rootLogger=WARN, out
log4j.appender.out=org.apache.log4j.ConsoleAppender
log4j.appender.out.layout=org.apache.log4j.PatternLayout
log4j.appender.out.layout.ConversionPattern=%p %c %m%n
"""
LISTENERS = ("PLAINTEXT", "SASL_PLAINTEXT", "SSL", "SASL_SSL")


class Missing(Exception):
    """Something that the broker needs is not installed."""


def find_jars() -> Path:
    """Return the directory with the jars of a broker, fetching them if nobody has any.

    Raises:
        Missing: There is no Java, or neither jars nor Maven.
    """
    if shutil.which("java") is None:
        raise Missing("java is not installed")
    home = os.environ.get("KAFKA_HOME")
    if home:
        libs = Path(home) / "libs"
        return libs if libs.is_dir() else Path(home)
    if any(JARS.glob("kafka_2.13-*.jar")):
        return JARS
    if shutil.which("mvn") is None:
        raise Missing("neither KAFKA_HOME nor mvn")
    subprocess.run(
        ["mvn", "-q", "-B", "-f", HERE / "kafka" / "pom.xml", "dependency:copy-dependencies",
         f"-DoutputDirectory={JARS}"],
        check=True, timeout=FETCH_LIMIT, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return JARS


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def make_certificates(directory: Path) -> None:
    """Make a CA, another CA, and certificates of the broker and of a client, as PEM files."""

    def openssl(*words: str) -> None:
        subprocess.run(
            ["openssl", *words], cwd=directory, check=True, capture_output=True, timeout=30
        )

    for name in ("ca", "other-ca"):
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2",
                "-subj", f"/CN=clusternode test {name}")  # fmt: skip
    curve = ("ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    for name in ("server", "client"):
        (directory / f"{name}.ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        openssl("req", "-newkey", *curve, "-nodes", "-keyout", f"{name}.key",
                "-out", f"{name}.csr", "-subj", f"/CN={name}")  # fmt: skip
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-CAcreateserial", "-out", f"{name}.pem", "-days", "2",
                "-extfile", f"{name}.ext")  # fmt: skip
    both = (directory / "server.key").read_text() + (directory / "server.pem").read_text()
    (directory / "server-both.pem").write_text(both)


@attrs.define
class Broker:
    """One broker process on free ports of 127.0.0.1."""

    directory: Path
    jars: Path
    ports: Mapping[str, int]
    process: subprocess.Popen[bytes] | None = None

    @classmethod
    def prepare(cls, directory: Path) -> Broker:
        """Make its files; `start` runs it.

        Raises:
            Missing: The user has given a broker, or what ours needs is not installed.
        """
        if os.environ.get(GIVEN):
            raise Missing(f"{GIVEN} is set: no broker of our own is started")
        jars = find_jars()
        names = (*LISTENERS, "CONTROLLER")
        broker = cls(directory, jars, dict(zip(names, free_ports(len(names)), strict=True)))
        make_certificates(directory)
        (directory / "log4j.properties").write_text(LOG4J)
        (directory / "server.properties").write_text(broker._properties())
        scram = [
            word
            for user, password in USERS.items()
            for kind in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for word in ("--add-scram", f"{kind}=[name={user},password={password}]")
        ]
        broker._java("kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c",
                     "server.properties", *scram)  # fmt: skip
        return broker

    def address(self, listener: str = "PLAINTEXT") -> str:
        return f"127.0.0.1:{self.ports[listener]}"

    def _command(self, *words: str) -> list[str]:
        log = f"-Dlog4j.configuration=file:{self.directory / 'log4j.properties'}"
        return ["java", *JAVA_OPTIONS, log, "-cp", f"{self.jars}/*", *words]

    def _java(self, *words: str) -> None:
        subprocess.run(
            self._command(*words), cwd=self.directory, check=True, capture_output=True, timeout=60
        )

    def _properties(self) -> str:
        listeners = ",".join(f"{name}://{self.address(name)}" for name in self.ports)
        advertised = ",".join(f"{name}://{self.address(name)}" for name in LISTENERS)
        lines = [
            "process.roles=broker,controller",
            "node.id=1",
            f"controller.quorum.voters=1@{self.address('CONTROLLER')}",
            "controller.listener.names=CONTROLLER",
            f"listeners={listeners}",
            f"advertised.listeners={advertised}",
            "listener.security.protocol.map=CONTROLLER:PLAINTEXT,"
            + ",".join(f"{name}:{name}" for name in LISTENERS),
            "inter.broker.listener.name=PLAINTEXT",
            "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "ssl.keystore.type=PEM",
            f"ssl.keystore.location={self.directory / 'server-both.pem'}",
            "ssl.truststore.type=PEM",
            f"ssl.truststore.location={self.directory / 'ca.pem'}",
            "listener.name.ssl.ssl.client.auth=required",
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "allow.everyone.if.no.acl.found=true",
            "super.users=User:ANONYMOUS",
            f"log.dirs={self.directory / 'data'}",
            "num.partitions=4",
            "num.network.threads=2",
            "num.io.threads=2",
            "background.threads=2",
            "offsets.topic.num.partitions=1",
            "offsets.topic.replication.factor=1",
            "transaction.state.log.num.partitions=1",
            "transaction.state.log.replication.factor=1",
            "transaction.state.log.min.isr=1",
            "group.initial.rebalance.delay.ms=0",
            "broker.session.timeout.ms=2000",  # after a kill, so soon the broker may come back
            "broker.heartbeat.interval.ms=500",
            "group.min.session.timeout.ms=1000",
            "log.cleaner.dedupe.buffer.size=10485760",
            "log.segment.bytes=16777216",
        ]
        users = " ".join(f'user_{user}="{password}"' for user, password in USERS.items())
        security = "org.apache.kafka.common.security"
        for listener in ("sasl_plaintext", "sasl_ssl"):
            lines += [
                f"listener.name.{listener}.plain.sasl.jaas.config="
                f"{security}.plain.PlainLoginModule required {users};",
                f"listener.name.{listener}.scram-sha-256.sasl.jaas.config="
                f"{security}.scram.ScramLoginModule required;",
                f"listener.name.{listener}.scram-sha-512.sasl.jaas.config="
                f"{security}.scram.ScramLoginModule required;",
            ]
        return "\n".join(lines) + "\n"

    def start(self) -> None:
        """Run the broker; `ready` waits until it serves."""
        with (self.directory / "broker.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command("kafka.Kafka", "server.properties"),
                cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def is_serving(self) -> bool:
        """Tell whether a client gets metadata.

        Raises:
            AssertionError: The process has ended.
        """
        import confluent_kafka.admin  # an optional dependency

        assert self.process is not None
        assert self.process.poll() is None, (self.directory / "broker.log").read_text()[-4000:]
        admin = confluent_kafka.admin.AdminClient(
            {"bootstrap.servers": self.address(), "log_level": 0}
        )
        try:
            return bool(admin.list_topics(timeout=1.0).brokers)
        except confluent_kafka.KafkaException:
            return False

    async def ready(self) -> None:
        with trio.fail_after(START_LIMIT):
            while not await trio.to_thread.run_sync(self.is_serving):  # noqa: ASYNC110
                await trio.sleep(0.1)

    def kill(self) -> None:
        """End it as a power cut does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_LIMIT)
