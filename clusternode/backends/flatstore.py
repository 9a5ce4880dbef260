"""`flatstore:/PATH`: events as lines of a file. Specified in docs/events.md, "flatstore:"."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import ClassVar, cast

import trio

from clusternode.backends.base import BATCH_MAX, BackendServices, Publication, wrong_uri
from clusternode.backends.flatstore_file import FileSettings, FlatFile
from clusternode.backends.flatstore_format import LineFormat
from clusternode.backends.options import Option, encode, query_of, read_options, read_path
from clusternode.config.kinds import BOOLEAN, STRING, WrongValue, choice, integer, text_kind
from clusternode.core.events import FlatstoreRotated
from clusternode.core.types import Seconds
from clusternode.routes.subscriptions import DELIVERED, DeliveryStatus

logger = logging.getLogger(__name__)

WRITE_TIMEOUT: Seconds = 10.0
"""A disk that takes longer for a batch hangs; the next back end is better."""
CLOSE_TIMEOUT: Seconds = 1.0
OWN_ROTATIONS_KEPT = 1024
"""As many as one batch can make and more: they come back to us while few others are on the way."""
DELIMITER_LENGTH_MAX = 8
SIZE_UNITS = {"k": 1024, "m": 1024**2, "g": 1024**3}
SIZE_MAX = 2**62


def _check_delimiter(text: str) -> object:
    if not 0 < len(text) <= DELIMITER_LENGTH_MAX or text[0].isalnum():
        raise WrongValue
    if any(char in text for char in "\\\n\r"):
        raise WrongValue
    return text


def _check_permissions(text: str) -> object:
    if not 3 <= len(text) <= 4 or any(digit not in "01234567" for digit in text):
        raise WrongValue
    return text


def _check_size(text: str) -> object:
    unit = SIZE_UNITS.get(text[-1:].lower())
    digits = text[:-1] if unit else text
    if not digits.isascii() or not digits.isdigit() or int(digits) * (unit or 1) > SIZE_MAX:
        raise WrongValue
    return int(digits) * (unit or 1)


def _check_suffix(text: str) -> object:
    stamp = datetime.now(UTC).strftime(text)
    if "/" in stamp or "\0" in stamp or len(stamp) > 128:
        raise WrongValue
    return text


DELIMITER = text_kind(
    "text",
    f"1 to {DELIMITER_LENGTH_MAX} characters, the first neither letter nor digit, without \\ "
    "and line ends",
    _check_delimiter,
)
PERMISSIONS = text_kind("octal", "an octal number, for instance 640", _check_permissions)
SIZE = text_kind("size", "bytes, or with k, m or g after it", _check_size)
SUFFIX = text_kind("text", "a format of strftime(3) without /", _check_suffix)

OPTIONS = (
    Option(
        name="format",
        kind=choice("values", "json"),
        default="values",
        help="values: `EVENT,value,value`. json: the notification, so names and types are kept.",
    ),
    Option(name="delimiter", kind=DELIMITER, default=",", help="Between values."),
    Option(
        name="escape_delimiter",
        kind=STRING,
        default="",
        help="Written in place of a delimiter in a value, as OpenSIPS does; otherwise a backslash "
        "is written before it, and nothing is lost.",
    ),
    Option(name="suppress_event_name", kind=BOOLEAN, default=False, help="Write the values only."),
    Option(
        name="file_permissions",
        kind=PERMISSIONS,
        default="644",
        help="Of a file that is made; the umask applies.",
    ),
    Option(
        name="suffix",
        kind=SUFFIX,
        default="",
        help="Added to the path when a file is opened; a format of strftime(3), in UTC.",
    ),
    Option(name="rotate_count", kind=integer(0), default=0, help="Lines per file; 0: any number."),
    Option(
        name="rotate_size",
        kind=SIZE,
        default=0,
        help="Size at which a file ends: bytes, or with k, m, g; 0: any.",
    ),
    Option(
        name="rotate_period",
        kind=integer(0, 366 * 86400),
        default=0,
        help="Seconds, aligned to the clock (3600: at each full hour UTC); 0: never.",
    ),
    Option(
        name="fsync",
        kind=choice("never", "close", "always"),
        default="never",
        help="never: delivered is what the kernel has. close: synced when a file ends. always: "
        "delivered is what is on the disk.",
    ),
)


def wall_clock() -> float:
    """Return the seconds since 1970, UTC."""
    return datetime.now(UTC).timestamp()


class FlatstoreBackend:
    """Appends events to a file, in a thread."""

    scheme: ClassVar[str] = "flatstore"
    batch_max = BATCH_MAX
    publish_timeout = WRITE_TIMEOUT

    def __init__(
        self, rest: str, services: BackendServices, clock: Callable[[], float] = wall_clock
    ) -> None:
        body, values = read_options("flatstore", rest, OPTIONS)
        self.path = read_path("flatstore", body)
        self.identity = self.shown = (
            f"flatstore:{encode(self.path)}{query_of(OPTIONS, values, None)}"
        )
        form = LineFormat(
            is_json=values["format"] == "json",
            delimiter=cast("str", values["delimiter"]),
            escape_delimiter=cast("str", values["escape_delimiter"]),
            suppress_event_name=cast("bool", values["suppress_event_name"]),
        )
        if form.escape_delimiter and len(form.escape_delimiter) != len(form.delimiter):
            expected = "escape_delimiter= of the length of the delimiter"
            raise wrong_uri(self.shown, expected)
        settings = FileSettings(
            path=self.path,
            permissions=int(cast("str", values["file_permissions"]), 8),
            suffix=cast("str", values["suffix"]),
            rotate_count=cast("int", values["rotate_count"]),
            rotate_size=cast("int", values["rotate_size"]),
            rotate_period=cast("int", values["rotate_period"]),
            fsync=cast("str", values["fsync"]),
        )
        self._services = services
        self._format = form
        self._file = FlatFile(settings, clock)
        self._clock = clock
        self._period = settings.rotate_period
        self._own: deque[tuple[str, str]] = deque(maxlen=OWN_ROTATIONS_KEPT)
        # One thread at a time: also while one that was given up still hangs.
        self._limiter = trio.CapacityLimiter(1)

    def reopen(self) -> None:
        """Begin the file anew before the next event is written (logrotate)."""
        self._file.reopen()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            task_status.started()
            while self._period:
                await trio.sleep(self._period - self._clock() % self._period)
                await self._rotate_if_due()
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                try:
                    await trio.to_thread.run_sync(
                        self._file.close, abandon_on_cancel=True, limiter=self._limiter
                    )
                except OSError as error:
                    logger.warning("%s: %s", self.shown, error.strerror)

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Append a batch.

        Raises:
            PeerUnreachable: The first one that is not settled could not be written.
        """
        # A file that is full with one line would never come to its end with its own rotations.
        own = [each for each in publications if self._is_about_us(each)]
        for publication in own:
            publication.settle(DeliveryStatus(True, "not written: it is about this file"))
        left = [each for each in publications if not each.is_settled]
        lines = [self._format.line(each.event, each.notification) for each in left]
        while lines:
            count = await trio.to_thread.run_sync(
                self._file.write, lines, abandon_on_cancel=True, limiter=self._limiter
            )
            for publication in left[:count]:
                publication.settle(DELIVERED)
            left, lines = left[count:], lines[count:]
            self._tell_rotations()
        await trio.lowlevel.checkpoint()

    async def _rotate_if_due(self) -> None:
        try:
            await trio.to_thread.run_sync(
                self._file.rotate_if_due, abandon_on_cancel=True, limiter=self._limiter
            )
        except OSError as error:
            logger.warning("%s: %s", self.shown, error.strerror or error)
        self._tell_rotations()

    def _tell_rotations(self) -> None:
        rotations, self._file.rotations = self._file.rotations, []
        for each in rotations:
            event = FlatstoreRotated(each.timestamp, each.reason, each.filename, each.old_filename)
            self._own.append((each.filename, each.old_filename))
            self._services.raise_event(event)

    def _is_about_us(self, publication: Publication) -> bool:
        event = publication.event
        if event.name != FlatstoreRotated.NAME:
            return False
        return (event.parameters["filename"], event.parameters["old_filename"]) in self._own
