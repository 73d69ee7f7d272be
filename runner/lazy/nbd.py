"""The server's side of NBD: the newstyle handshake for one read-only export, and the format of requests and replies.

https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md; names as there. There is one export, and its name is
whatever the client says. What the export does not support is refused as the protocol asks, so a client that knows more can
do without.
"""

from __future__ import annotations

import struct

REQUEST = struct.Struct(">IHHQQI")  # magic, flags, type, cookie, offset, length
REPLY = struct.Struct(">IIQ")  # magic, error, cookie
REQUEST_MAGIC, REPLY_MAGIC = 0x25609513, 0x67446698
CMD_READ, CMD_DISC, CMD_FLUSH, CMD_CACHE = 0, 2, 3, 5
EIO, EINVAL, ENOTSUP = 5, 22, 95
READ_MAX_BYTES = 32 << 20

_NBDMAGIC, _IHAVEOPT = b"NBDMAGIC", b"IHAVEOPT"
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_CLIENT_FLAGS = struct.Struct(">I")
_OPTION = struct.Struct(">8sII")  # magic, option, length
_OPTION_REPLY = struct.Struct(">QIII")  # magic, option, type, length
_OPTION_REPLY_MAGIC = 0x3E889045565A9
_OPTION_MAX_BYTES = 8192
_OPT_EXPORT_NAME, _OPT_ABORT, _OPT_LIST, _OPT_INFO, _OPT_GO = 1, 2, 3, 6, 7
_REP_ACK, _REP_SERVER, _REP_INFO = 1, 2, 3
_REP_ERR_UNSUP, _REP_ERR_INVALID = 1 << 31 | 1, 1 << 31 | 3
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_HAS_FLAGS, _READ_ONLY, _SEND_FLUSH, _CAN_MULTI_CONN, _SEND_CACHE = 1, 2, 4, 1 << 8, 1 << 10
_EXPORT_FLAGS = _HAS_FLAGS | _READ_ONLY | _SEND_FLUSH | _CAN_MULTI_CONN | _SEND_CACHE
_PREFERRED_BLOCK = 4096

GREETING = _NBDMAGIC + _IHAVEOPT + struct.pack(">H", _FIXED_NEWSTYLE | _NO_ZEROES)


class ProtocolError(Exception):
    """The client does not speak NBD as we do."""


class Handshake:
    """The handshake with one client. GREETING has been sent to it."""

    def __init__(self, size: int) -> None:
        """Offer an export of `size` bytes."""
        self._size = size
        self._flags: int | None = None
        self.rest = bytearray()  # received and not yet used; after the end, the first requests
        self.is_over = False  # requests follow
        self.has_left = False  # the client wants no more

    def feed(self, data: bytes) -> bytes:
        """Take received bytes and return what to send.

        Raises:
            ProtocolError: They are not a handshake.
        """
        self.rest += data
        out = bytearray()
        while not self.is_over and not self.has_left and (answer := self._step()) is not None:
            out += answer
        return bytes(out)

    def _step(self) -> bytes | None:
        """Answer what has come; None if it is not complete."""
        if self._flags is None:
            if len(self.rest) < _CLIENT_FLAGS.size:
                return None
            (self._flags,) = _CLIENT_FLAGS.unpack(self._take(_CLIENT_FLAGS.size))
            if not self._flags & _FIXED_NEWSTYLE:
                raise ProtocolError("the client knows no fixed newstyle handshake")
            return b""
        if len(self.rest) < _OPTION.size:
            return None
        magic, option, length = _OPTION.unpack_from(self.rest)
        if magic != _IHAVEOPT or length > _OPTION_MAX_BYTES:
            raise ProtocolError("the client sends no option")
        if len(self.rest) < _OPTION.size + length:
            return None
        self._take(_OPTION.size)
        return self._answer(option, self._take(length))

    def _take(self, count: int) -> bytes:
        data = bytes(self.rest[:count])
        del self.rest[:count]
        return data

    def _answer(self, option: int, data: bytes) -> bytes:
        assert self._flags is not None
        if option == _OPT_EXPORT_NAME:
            self.is_over = True
            return struct.pack(">QH", self._size, _EXPORT_FLAGS) + bytes(0 if self._flags & _NO_ZEROES else 124)
        if option == _OPT_ABORT:
            self.has_left = True
            return _reply(option, _REP_ACK)
        if option == _OPT_LIST:
            return _reply(option, _REP_SERVER, struct.pack(">I", 0)) + _reply(option, _REP_ACK)
        if option in (_OPT_INFO, _OPT_GO):
            if not _is_info_request(data):
                return _reply(option, _REP_ERR_INVALID)
            self.is_over = option == _OPT_GO
            export = struct.pack(">HQH", _INFO_EXPORT, self._size, _EXPORT_FLAGS)
            blocks = struct.pack(">HIII", _INFO_BLOCK_SIZE, 1, _PREFERRED_BLOCK, READ_MAX_BYTES)
            return _reply(option, _REP_INFO, export) + _reply(option, _REP_INFO, blocks) + _reply(option, _REP_ACK)
        return _reply(option, _REP_ERR_UNSUP)


def _is_info_request(data: bytes) -> bool:
    """Return whether the data of INFO or GO has the length that it says: name length, name, count, 16 bits for each."""
    if len(data) < 6:
        return False
    (name_bytes,) = struct.unpack_from(">I", data)
    if len(data) < 6 + name_bytes:
        return False
    (count,) = struct.unpack_from(">H", data, 4 + name_bytes)
    return len(data) == int(6 + name_bytes + 2 * count)


def _reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return _OPTION_REPLY.pack(_OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def reply_head(cookie: int, error: int = 0) -> bytes:
    """Return the head of the reply to a request; data follows unless it has an error."""
    return REPLY.pack(REPLY_MAGIC, error, cookie)
