"""Capture files, read and written as streams: pcap (draft-ietf-opsawg-pcap) and pcapng (draft-ietf-opsawg-pcapng).

Reading takes either byte order, micro- and nanoseconds, Kuznetzov's longer records, pcapng's sections,
interfaces, enhanced, simple and obsolete packet blocks, and gzip around any of them; it keeps a window
of the file in memory, never the file. Every byte of it is the peer's: whatever doesn't fit is a
`CaptureFileError` at that record. Writing is little-endian.
"""

from __future__ import annotations

import gzip
import platform
import zlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from math import gcd
from pathlib import Path
from struct import Struct
from typing import BinaryIO

from lockstep.batch import Buffer

LINKTYPE_ETHERNET = 1
SNAPLEN = 262_144
#: Longest record of a pcap file (without its header) and longest block of a pcapng file that is read.
MAX_RECORD = 16 << 20
#: Most interfaces in one section: a hostile file may not fill the memory with them.
MAX_INTERFACES = 65_536

_CHUNK = 1 << 20
_SECOND = 1_000_000_000

_GZIP = b"\x1f\x8b"
#: The first four bytes of a pcap file → byte order, nanoseconds of a fraction's unit, bytes of a record's header.
_PCAP = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000, 16),
    b"\xa1\xb2\xc3\xd4": (">", 1000, 16),
    b"\x4d\x3c\xb2\xa1": ("<", 1, 16),
    b"\xa1\xb2\x3c\x4d": (">", 1, 16),
    b"\x34\xcd\xb2\xa1": ("<", 1000, 24),  # Kuznetzov: interface, protocol and packet type follow
    b"\xa1\xb2\xcd\x34": (">", 1000, 24),
}

SHB, IDB, PB, SPB, EPB = 0x0A0D0D0A, 1, 2, 3, 6
_SHB = b"\n\r\r\n"  # reads the same in both byte orders
_ORDERS = {b"\x4d\x3c\x2b\x1a": "<", b"\x1a\x2b\x3c\x4d": ">"}
#: Least total length of a block.
_LEAST = {SHB: 28, IDB: 20, PB: 32, SPB: 16, EPB: 32}
#: Skipped here, yet frames to Wireshark, so they take a number: the journal's, sysdig's and custom blocks.
_NUMBERED = frozenset({0x9, 0x204, 0x216, 0x221, 0xBAD, 0x40000BAD})

_END, _COMMENT = 0, 1
_SHB_HARDWARE, _SHB_OS, _SHB_USERAPPL = 2, 3, 4
_IF_NAME, _IF_TSRESOL, _IF_TSOFFSET = 2, 9, 14
_NO_MORE = bytes(4)  # opt_endofopt

# What is written for each packet.
_RECORD = Struct("<IIII")
_PACKET_BLOCK = Struct("<IIIIIII")
_WORD = Struct("<I")


class CaptureFileError(Exception):
    """A capture file that can't be read on.

    path: the file. offset: where the bad record or block starts, in bytes, uncompressed. why: in words.
    """

    def __init__(self, path: Path, offset: int, why: str) -> None:
        self.path = path
        self.offset = offset
        self.why = why
        super().__init__(f"{path}: at byte {offset}: {why}")


class CaptureCutError(CaptureFileError):
    """A capture file that ends inside a record: whoever wrote it was stopped. All records before it are right."""


@dataclass(slots=True)
class Packet:
    """One captured packet.

    number: from 1, as Wireshark counts. time_ns: nanoseconds since 1970, 0 in a block without a time (SPB).
    data: the bytes captured. original_length: bytes on the wire. interface: from 0 in its section.
    """

    number: int
    time_ns: int
    linktype: int
    data: bytes
    original_length: int
    interface: int = 0


def read_packets(path: Path) -> Generator[Packet, None, None]:
    """The packets of a pcap or pcapng file, gzip or not, in the file's order.

    Raises CaptureFileError at the first place that doesn't fit, after what stood before it was
    given (CaptureCutError where the file ends inside a record), and OSError if the file can't be
    opened or read; all of it only once it is asked for a packet.
    """
    with path.open("rb") as file:
        zipped = file.peek(len(_GZIP)).startswith(_GZIP)
        source = _Source(path, gzip.GzipFile(fileobj=file) if zipped else file)
        if not source.more(4):
            raise source.error("the file is empty")
        magic = source.data[:4]
        if magic in _PCAP:
            yield from _read_pcap(source, *_PCAP[magic])
        elif magic == _SHB:
            yield from _read_pcapng(source)
        else:
            raise source.error(f"neither pcap nor pcapng: it starts with {magic.hex(' ')}")


class _Source:
    """A window that slides over a file: `data[at:]` is what was read and not yet used."""

    __slots__ = ("_file", "_path", "_start", "at", "data")

    def __init__(self, path: Path, file: BufferedReader | gzip.GzipFile) -> None:
        self._path = path
        self._file = file
        self._start = 0
        self.data = b""
        self.at = 0

    def more(self, size: int) -> bool:
        """Whether a record of `size` bytes starts at `at`, which moves with the window; False at the file's end.

        Raises CaptureCutError where the file ends inside the record.
        """
        return len(self.data) - self.at >= size or self._slide(size)

    def _slide(self, size: int) -> bool:
        pieces = [self.data[self.at :]]
        have = len(pieces[0])
        while have < size and (piece := self._read()):
            pieces.append(piece)
            have += len(piece)
        self._start += self.at
        self.at = 0
        self.data = b"".join(pieces)
        if 0 < have < size:
            raise self.cut(f"cut off: {have} of {size} bytes")
        return have > 0

    def _read(self) -> bytes:
        try:
            return self._file.read1(_CHUNK)
        except EOFError as error:
            raise self.cut("cut off: the gzip data has no end") from error
        except (zlib.error, gzip.BadGzipFile) as error:
            raise self.error(f"bad gzip data: {error}") from error

    def error(self, why: str) -> CaptureFileError:
        """The fault of the record at `at`."""
        return CaptureFileError(self._path, self._start + self.at, why)

    def cut(self, why: str) -> CaptureCutError:
        """The file ends in the record at `at`."""
        return CaptureCutError(self._path, self._start + self.at, why)


def _read_pcap(source: _Source, order: str, unit: int, header: int) -> Iterator[Packet]:
    """unit: nanoseconds of a fraction's unit. header: bytes of a record's header."""
    source.more(24)
    major, minor, linktype = Struct(order + "4xHH12xI").unpack_from(source.data, source.at)
    if (major, minor) != (2, 4):
        raise source.error(f"pcap version {major}.{minor}; only 2.4 is known")
    linktype &= 0xFFFF  # the upper half tells of the frame check sequence
    source.at += 24
    record = Struct(order + "IIII")
    number = 0
    while source.more(header):
        seconds, fraction, captured, original = record.unpack_from(source.data, source.at)
        if captured > MAX_RECORD:
            raise source.error(f"a packet of {captured} bytes; {MAX_RECORD} is the most")
        source.more(header + captured)
        start = source.at + header
        source.at = end = start + captured
        number += 1
        yield Packet(number, seconds * _SECOND + fraction * unit, linktype, source.data[start:end], original)


def _read_pcapng(source: _Source) -> Iterator[Packet]:
    section = _Section("<")
    number = 0
    while source.more(12):
        if source.data.startswith(_SHB, source.at):
            section = _open_section(source)
        kind, length = section.head.unpack_from(source.data, source.at)
        if length % 4 or not _LEAST.get(kind, 12) <= length <= MAX_RECORD:
            raise source.error(f"a block of type {kind:#x} can't have {length} bytes")
        source.more(length)
        (trailer,) = section.word.unpack_from(source.data, source.at + length - 4)
        if trailer != length:
            raise source.error(f"a block of {length} bytes that ends as one of {trailer}")
        packet = None
        if kind in (EPB, PB, SPB):
            number += 1
            packet = section.packet(source, kind, length, number)
        elif kind == IDB:
            section.add_interface(source, length)
        elif kind in _NUMBERED:
            number += 1
        source.at += length
        if packet is not None:
            yield packet


def _open_section(source: _Source) -> _Section:
    source.more(_LEAST[SHB])
    magic = source.data[source.at + 8 : source.at + 12]
    if magic not in _ORDERS:
        raise source.error(f"no byte-order magic: {magic.hex(' ')}")
    order = _ORDERS[magic]
    version = Struct(order + "HH").unpack_from(source.data, source.at + 12)
    if version not in ((1, 0), (1, 2)):
        raise source.error("pcapng version {}.{}; only 1.0 is known".format(*version))
    return _Section(order)


@dataclass(slots=True)
class _Interface:
    """A tick of its clock is `numerator / denominator` nanoseconds, from `offset_ns` on."""

    linktype: int
    snaplen: int
    numerator: int = 1000
    denominator: int = 1
    offset_ns: int = 0


class _Section:
    """What the blocks of one section share: byte order and interfaces."""

    __slots__ = ("_interface", "_obsolete", "_offset", "_option", "_packet", "head", "interfaces", "word")

    def __init__(self, order: str) -> None:
        self.head = Struct(order + "II")
        self.word = Struct(order + "I")
        self._interface = Struct(order + "HxxI")
        self._packet = Struct(order + "IIIII")
        self._obsolete = Struct(order + "HxxIIII")
        self._option = Struct(order + "HH")
        self._offset = Struct(order + "q")
        self.interfaces: list[_Interface] = []

    def packet(self, source: _Source, kind: int, length: int, number: int) -> Packet:
        """The packet of the whole packet block at `source.at`."""
        data, body = source.data, source.at + 8
        if kind == SPB:
            (original,) = self.word.unpack_from(data, body)
            of = self._interface_of(source, 0)
            captured = min(original, of.snaplen or original)
            index, time_ns, start = 0, 0, body + 4
        else:
            layout = self._packet if kind == EPB else self._obsolete
            index, high, low, captured, original = layout.unpack_from(data, body)
            of = self._interface_of(source, index)
            time_ns = ((high << 32) | low) * of.numerator // of.denominator + of.offset_ns
            start = body + 20
        end = start + captured
        if end > source.at + length - 4:
            raise source.error(f"a packet of {captured} bytes in a block of {length}")
        return Packet(number, time_ns, of.linktype, data[start:end], original, index)

    def _interface_of(self, source: _Source, index: int) -> _Interface:
        if index >= len(self.interfaces):
            raise source.error(f"a packet of interface {index}; the section has {len(self.interfaces)}")
        return self.interfaces[index]

    def add_interface(self, source: _Source, length: int) -> None:
        """Take in the whole interface description block at `source.at`."""
        if len(self.interfaces) == MAX_INTERFACES:
            raise source.error(f"more than {MAX_INTERFACES} interfaces in a section")
        interface = _Interface(*self._interface.unpack_from(source.data, source.at + 8))
        for code, value in self._options(source, source.at + 16, source.at + length - 4):
            if code == _IF_TSRESOL:
                if len(value) != 1:
                    raise source.error(f"if_tsresol of {len(value)} bytes")
                ticks = 2 ** (value[0] & 0x7F) if value[0] & 0x80 else 10 ** value[0]
                shared = gcd(_SECOND, ticks)
                interface.numerator, interface.denominator = _SECOND // shared, ticks // shared
            elif code == _IF_TSOFFSET:
                if len(value) != 8:
                    raise source.error(f"if_tsoffset of {len(value)} bytes")
                interface.offset_ns = self._offset.unpack(value)[0] * _SECOND
        self.interfaces.append(interface)

    def _options(self, source: _Source, at: int, end: int) -> Iterator[tuple[int, bytes]]:
        while at < end:
            code, size = self._option.unpack_from(source.data, at)
            if code == _END:
                return
            if size > end - at - 4:
                raise source.error(f"an option of {size} bytes that leaves its block")
            yield code, source.data[at + 4 : at + 4 + size]
            at += 4 + size + -size % 4


class PcapWriter:
    """Writes a pcap file, its header at once.

    file: takes bytes; never closed here. snaplen: bytes kept of a packet. nanosecond: the unit of
    time, else microseconds.
    """

    def __init__(
        self, file: BinaryIO, linktype: int = LINKTYPE_ETHERNET, snaplen: int = SNAPLEN, nanosecond: bool = True
    ) -> None:
        self._file = file
        self._snaplen = snaplen
        self._unit = 1 if nanosecond else 1000
        magic = 0xA1B23C4D if nanosecond else 0xA1B2C3D4
        file.write(Struct("<IHHIIII").pack(magic, 2, 4, 0, 0, snaplen, linktype))

    def record(self, data: Buffer, time_ns: int, comment: str | None = None, interface: int = 0) -> bytes:
        """A packet as the bytes of its record. pcap has no place for a comment or an interface.

        Raises ValueError for a time outside 1970 to 2106, which pcap can't hold.
        """
        seconds, rest = divmod(time_ns, _SECOND)
        if not 0 <= seconds < 1 << 32:
            raise ValueError(f"pcap can't hold the time {time_ns} ns")
        kept = data[: self._snaplen]
        return _RECORD.pack(seconds, rest // self._unit, len(kept), len(data)) + kept

    def write(self, data: Buffer, time_ns: int, comment: str | None = None, interface: int = 0) -> None:
        """Write one packet, as `record` says."""
        self._file.write(self.record(data, time_ns, comment, interface))


class PcapngWriter:
    """Writes a pcapng file of one section with enhanced packet blocks, in nanoseconds.

    file: takes bytes; never closed here. snaplen: bytes kept of a packet. interfaces: their names;
    none is one interface without a name.
    """

    def __init__(
        self,
        file: BinaryIO,
        linktype: int = LINKTYPE_ETHERNET,
        snaplen: int = SNAPLEN,
        interfaces: Sequence[str] = (),
    ) -> None:
        self._file = file
        self._snaplen = snaplen
        self._interfaces = len(interfaces) or 1
        about = (
            _text_option(_SHB_HARDWARE, platform.machine())
            + _text_option(_SHB_OS, f"{platform.system()} {platform.release()}")
            + _text_option(_SHB_USERAPPL, "lockstep")
        )
        blocks = [_block(SHB, Struct("<IHHq").pack(0x1A2B3C4D, 1, 0, -1) + about + _NO_MORE)]
        for name in interfaces or ("",):
            options = (_text_option(_IF_NAME, name) if name else b"") + _option(_IF_TSRESOL, b"\x09") + _NO_MORE
            blocks.append(_block(IDB, Struct("<HHI").pack(linktype, 0, snaplen) + options))
        file.write(b"".join(blocks))

    def record(self, data: Buffer, time_ns: int, comment: str | None = None, interface: int = 0) -> bytes:
        """A packet as the bytes of its block. comment: cut after 65535 bytes of UTF-8.

        Raises ValueError for a time before 1970 or after 2554, or an interface that isn't there.
        """
        if not 0 <= time_ns < 1 << 64:
            raise ValueError(f"pcapng can't hold the time {time_ns} ns")
        if not 0 <= interface < self._interfaces:
            raise ValueError(f"there is no interface {interface}; there are {self._interfaces}")
        kept = data[: self._snaplen]
        options = _text_option(_COMMENT, comment) + _NO_MORE if comment else b""
        pad = -len(kept) % 4
        length = 32 + len(kept) + pad + len(options)
        head = _PACKET_BLOCK.pack(EPB, length, interface, time_ns >> 32, time_ns & 0xFFFFFFFF, len(kept), len(data))
        return b"".join((head, kept, bytes(pad), options, _WORD.pack(length)))

    def write(self, data: Buffer, time_ns: int, comment: str | None = None, interface: int = 0) -> None:
        """Write one packet, as `record` says."""
        self._file.write(self.record(data, time_ns, comment, interface))


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return Struct("<II").pack(kind, length) + body + _WORD.pack(length)


def _option(code: int, value: bytes) -> bytes:
    return Struct("<HH").pack(code, len(value)) + value + bytes(-len(value) % 4)


def _text_option(code: int, text: str) -> bytes:
    cut = text.encode(errors="replace")[:65535]
    return _option(code, cut.decode(errors="ignore").encode())  # no half character at the end
